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

from ted_ds.numerics.divergences import KL, Divergence, Softened

IGNORED_LABEL = -100
"""Of class ids and tokens. In labels that are numbers, NaN is ignored: -100 may be somebody's target."""


NO_CANDIDATE = -1e9
"""The logit of what has no probability: exactly 0 in fp32 at any temperature, and with a log that is finite, so that a
divergence, in which it is multiplied by that 0, is too."""


def kept_labels(labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """True where a label counts."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORED_LABEL


def _zeroed(keep: Bool[Tensor, "*batch"], values: Float[Tensor, "*batch last"]) -> Float[Tensor, "*batch last"]:
    """Before any arithmetic: the gradient of a value that is not kept would else be zero times NaN."""
    return values.masked_fill(~keep.reshape(*keep.shape, *[1] * (values.ndim - keep.ndim)), 0)


def _sum_where(keep: Bool[Tensor, "*batch"], values: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    return torch.where(keep, values, torch.zeros_like(values)).sum()


def cross_entropy_sum(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Sum of ``-log softmax(logits)[label]`` over kept labels, in fp32 nats. Gradient flows to ``logits``."""
    kept = kept_labels(labels)
    log_probabilities = F.log_softmax(_zeroed(kept, logits).float(), dim=-1)
    picked = log_probabilities.gather(-1, labels.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
    return -_sum_where(kept, picked)


def weighed_cross_entropy_sum(
    logits: Float[Tensor, "*batch labels"],
    labels: Int[Tensor, "*batch"],
    *,
    class_weights: Float[Tensor, " labels"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum over kept labels y of ``-sum_c t_c w_c log softmax(logits)_c``, in fp32 nats. Gradient flows to ``logits``.

    The target ``t`` is ``1 - smoothing`` at y, and ``smoothing`` spread evenly over all labels (Szegedy et al. 2016);
    ``w`` are the class weights. As ``torch.nn.functional.cross_entropy`` has it with ``reduction="sum"``; with
    ``"mean"`` that divides by the sum of the weights of the given labels, the objective here by their count.
    """
    kept = kept_labels(labels)
    weighed = class_weights * F.log_softmax(_zeroed(kept, logits).float(), dim=-1)
    of_label = weighed.gather(-1, labels.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
    return -_sum_where(kept, (1 - smoothing) * of_label + smoothing * weighed.mean(-1))


def among_candidates(
    logits: Float[Tensor, "batch outputs seq"], candidates: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch outputs seq"]:
    """Logits of positions in fp32, where only ``candidates`` have a probability. Gradient flows to theirs alone."""
    return logits.float().masked_fill(~candidates.unsqueeze(1), NO_CANDIDATE)


def soft_cross_entropy_sum(
    logits: Float[Tensor, "batch labels"], probabilities: Float[Tensor, "batch labels"]
) -> Float[Tensor, ""]:
    """Sum over kept rows of ``-sum_c p_c log softmax(logits)_c``, in fp32 nats; a row of NaN is not kept."""
    kept = kept_labels(probabilities)
    terms = probabilities.masked_fill(~kept, 0) * F.log_softmax(_zeroed(kept.all(-1), logits).float(), dim=-1)
    return -_sum_where(kept.all(-1), terms.sum(-1))


def binary_cross_entropy_sum(
    logits: Float[Tensor, "batch labels"], labels: Float[Tensor, "batch labels"]
) -> Float[Tensor, ""]:
    """Sum over kept entries of ``-y log s(z) - (1 - y) log(1 - s(z))``, s the logistic function, in fp32 nats."""
    kept = kept_labels(labels)
    each = F.binary_cross_entropy_with_logits(
        _zeroed(kept, logits).float(), labels.float().masked_fill(~kept, 0), reduction="none"
    )
    return _sum_where(kept, each)


def squared_error_sum(
    outputs: Float[Tensor, "batch outputs"],
    targets: Float[Tensor, "batch outputs"],
    *,
    keep: Bool[Tensor, "batch outputs"],
) -> Float[Tensor, ""]:
    """Sum of ``(output - target)^2`` where kept, in fp32. Gradient flows to ``outputs`` alone."""
    difference = _zeroed(keep, outputs).float() - _zeroed(keep, targets.detach()).float()
    return _sum_where(keep, difference.square())


def divergence_sum(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    keep: Bool[Tensor, "*batch"],
    temperature: float,
    divergence: Divergence = KL,
) -> Float[Tensor, ""]:
    """Sum over kept positions of the divergence of ``softmax(student / T)`` from ``softmax(teacher / T)``, in fp32.

    Only ``student_logits`` receive gradient; it shrinks with ``1 / T^2``, which the objective makes up for.
    """
    student = _zeroed(keep, student_logits).float() / temperature
    teacher = _zeroed(keep, teacher_logits.detach()).float() / temperature
    return _sum_where(keep, divergence.of_rows(_categorical(teacher), _categorical(student)))


def bernoulli_divergence_sum(
    student_logits: Float[Tensor, "batch labels"],
    teacher_logits: Float[Tensor, "batch labels"],
    *,
    keep: Bool[Tensor, "batch labels"],
    temperature: float,
    divergence: Divergence = KL,
) -> Float[Tensor, ""]:
    """Sum over kept entries of the divergence of ``Bernoulli(s(student / T))`` from the teacher's, in fp32.

    s is the logistic function: in a multi-label task each label is a yes or no of its own. Gradient as in
    :func:`divergence_sum`.
    """
    student = _zeroed(keep, student_logits).float() / temperature
    teacher = _zeroed(keep, teacher_logits.detach()).float() / temperature
    return _sum_where(keep, divergence.of_rows(_bernoulli(teacher), _bernoulli(student)))


def _categorical(logits: Float[Tensor, "*batch outcomes"]) -> Softened:
    logs = F.log_softmax(logits, dim=-1)
    return Softened(logs.exp(), logs)


def _bernoulli(logits: Float[Tensor, "*batch"]) -> Softened:
    """Yes, and no."""
    both = (logits, -logits)
    probabilities, logs = [one.sigmoid() for one in both], [F.logsigmoid(one) for one in both]
    return Softened(torch.stack(probabilities, dim=-1), torch.stack(logs, dim=-1))


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
    student, teacher = compared_features(student_features, teacher_features, keep, normalise=normalise)
    return _sum_where(keep, (student - teacher).square().mean(-1))


def feature_cosine_sum(
    student_features: Float[Tensor, "batch seq dim"],
    teacher_features: Float[Tensor, "batch seq dim"],
    *,
    keep: Bool[Tensor, "batch seq"],
    normalise: bool = False,
) -> Float[Tensor, ""]:
    """Sum over kept tokens of ``1 - cos`` of the angle between paired filter outputs (DistilBERT's cosine loss).

    Only ``student_features`` receive gradient. With ``normalise`` it is one less the correlation of their coordinates.
    Features that are all 0 have no direction: they count 1.
    """
    student, teacher = compared_features(student_features, teacher_features, keep, normalise=normalise)
    return _sum_where(keep, 1 - F.cosine_similarity(student, teacher, dim=-1))


def compared_features(
    student: Float[Tensor, "batch seq dim"],
    teacher: Float[Tensor, "batch seq dim"],
    keep: Bool[Tensor, "batch seq"],
    *,
    normalise: bool,
) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "batch seq dim"]]:
    """Both sides in fp32, or fp64, with 0 at what does not count."""
    sides = (_zeroed(keep, student), _zeroed(keep, teacher.detach()))
    wide = [one if one.dtype == torch.float64 else one.float() for one in sides]
    if normalise:
        wide = [F.layer_norm(features, features.shape[-1:]) for features in wide]
    return wide[0], wide[1]
