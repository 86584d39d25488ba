"""The loss terms, each a plain fp32 sum over what is kept; nothing is divided here.

A term's count is known before the forward pass and reduced over ranks and microbatches once per step;
:func:`ted_ds.numerics.objective.combine` divides once by that global count. Padding and ignored labels are never
kept; they are selected away, not multiplied by zero, as a padded position may hold anything, NaN too.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

IGNORED_LABEL = -100


def kept_labels(labels: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """True where a label counts."""
    return labels != IGNORED_LABEL


def next_token_labels(labels: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """The label of each position's *next* token; the last position has none and is ignored."""
    return torch.cat([labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORED_LABEL)], dim=1)


def cross_entropy_sum(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Sum of ``-log softmax(logits)[label]`` over kept labels, in fp32 nats. Gradient flows to ``logits``."""
    kept = kept_labels(labels)
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    picked = log_probabilities.gather(-1, labels.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
    return -torch.where(kept, picked, torch.zeros_like(picked)).sum()


def kl_divergence_sum(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    keep: Bool[Tensor, "*batch"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over kept positions of ``T^2 * KL(teacher || student)`` at temperature ``T``, in fp32 nats.

    ``T^2`` keeps the gradient's scale independent of ``T`` (Hinton et al. 2015, section 2). Only ``student_logits``
    receive gradient.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    return torch.where(keep, divergence, torch.zeros_like(divergence)).sum() * temperature**2


def feature_mse_sum(
    student_features: Float[Tensor, "batch seq dim"],
    teacher_features: Float[Tensor, "batch seq dim"],
    *,
    keep: Bool[Tensor, "batch seq"],
    normalise: bool = False,
) -> Float[Tensor, ""]:
    """Sum over kept tokens of the mean squared difference of paired filter outputs (TED, the layer-wise term).

    The mean is over ``dim``. Only ``student_features`` receive gradient. ``normalise`` first brings each token's
    features, on both sides, to mean 0 and variance 1: decoders have a few tokens and coordinates thousands of times
    larger than the rest, and without it the term is about little else.
    """
    student, teacher = student_features.float(), teacher_features.detach().float()
    if normalise:
        student, teacher = (F.layer_norm(features, features.shape[-1:]) for features in (student, teacher))
    squared = (student - teacher).square().mean(-1)
    return torch.where(keep, squared, torch.zeros_like(squared)).sum()
