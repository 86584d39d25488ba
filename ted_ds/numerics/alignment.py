"""How alike the tokens of a text lie to each other in two spaces, whichever axes these have."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ted_ds.numerics.losses import compared_features

NO_SPREAD = 16
"""Units in the last place of the features: what is left of equal ones once their mean is taken off."""


def feature_cka_sum(
    student_features: Float[Tensor, "batch seq dim"],
    teacher_features: Float[Tensor, "batch seq dim"],
    *,
    keep: Bool[Tensor, "batch seq"],
    normalise: bool = False,
) -> Float[Tensor, ""]:
    """Sum over texts, a row each, of ``n (1 - CKA)``, where ``n`` of its tokens are kept.

    ``CKA = |Y^T X|^2 / (|X^T X| |Y^T Y|)`` in Frobenius norms, of both sides' features of these tokens less their mean
    (linear CKA: Kornblith et al. 2019, equation 4 with a linear kernel; as a loss between hidden states of language
    models: Dasgupta and Cohn 2025). It is the same for features that are turned, mirrored, moved or scaled.

    Each text by itself and not the tokens of a batch: those change with ranks and microbatches. So each token counts
    what its text comes to, and one that is alone counts 0. Only ``student_features`` receive gradient. ``normalise``
    first brings each token's features, on both sides, to mean 0 and variance 1. Where the tokens of one side do not
    differ, they count 1, and of both sides, 0.
    """
    both = compared_features(student_features, teacher_features, keep, normalise=normalise)
    (student, varies), (teacher, wanted) = (_centred(one, keep) for one in both)
    comparable = varies & wanted
    of_each = torch.where(comparable, _shared(student, student) * _shared(teacher, teacher), 1.0).sqrt()
    distance = torch.where(comparable, 1 - _shared(student, teacher) / of_each, (varies != wanted).to(of_each.dtype))
    return (keep.sum(-1) * distance).sum()


def _centred(
    features: Float[Tensor, "batch seq dim"], keep: Bool[Tensor, "batch seq"]
) -> tuple[Float[Tensor, "batch seq dim"], Bool[Tensor, " batch"]]:
    """Each text's less their mean, scaled to a norm of 1, and 0 where nothing is kept; and which texts have a norm."""
    mean = features.sum(1, keepdim=True) / keep.sum(-1).clamp(min=1)[:, None, None]
    centred = (features - mean).masked_fill(~keep.unsqueeze(-1), 0)
    square = centred.square().sum((1, 2))
    noise = NO_SPREAD * torch.finfo(features.dtype).eps
    varies = square > noise**2 * features.detach().square().sum((1, 2))
    return centred / torch.where(varies, square, 1.0).sqrt()[:, None, None], varies


def _shared(left: Float[Tensor, "batch seq dim"], right: Float[Tensor, "batch seq dim"]) -> Float[Tensor, " batch"]:
    """``|left^T right|^2`` of each text, through whichever matrices are smaller."""
    if left.shape[1] < left.shape[2]:
        return ((left @ left.mT) * (right @ right.mT)).sum((1, 2))
    return (left.mT @ right).square().sum((1, 2))
