"""The plain way to what the product computes in a fused or streamed way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from ted_ds.config.distill import PARAMETERS
from ted_ds.models.heads import FilterProbes
from ted_ds.models.predictions import DensePredictions, VocabularyPredictions
from ted_ds.runtime.frozen import FrozenModel

DIVERGENCES: dict[str, float | None] = {
    "kl": None,
    "reverse_kl": None,
    "jsd": 0.3,
    "skew_kl": 0.1,
    "skew_reverse_kl": 0.2,
    "tv": None,
}
"""Each with a parameter that tells its two sides apart."""


def divergence_settings(kind: str) -> dict[str, Any]:
    """One of :data:`DIVERGENCES`, as a recipe has it."""
    names = [name for name, (kinds, _) in PARAMETERS.items() if kind in kinds]
    return {"divergence": kind, **dict.fromkeys(names, DIVERGENCES[kind])}


def plain_divergence(kind: str, parameter: float | None, teacher: Tensor, student: Tensor) -> Tensor:
    """Of each row of (softened) logits, by torch.distributions."""
    if not len(student):  # which distributions do not know
        return student.sum(-1) * 0
    p, q = Categorical(logits=teacher), Categorical(logits=student)

    def mixture(of_teacher: float) -> Categorical:
        shares = [p.logits + math.log(of_teacher), q.logits + math.log1p(-of_teacher)]
        return Categorical(logits=torch.logaddexp(*shares))

    if kind == "kl":
        return kl_divergence(p, q)
    if kind == "reverse_kl":
        return kl_divergence(q, p)
    if kind == "tv":
        return (p.probs - q.probs).abs().sum(-1) / 2
    assert parameter is not None
    if kind == "jsd":
        between = mixture(parameter)
        return parameter * kl_divergence(p, between) + (1 - parameter) * kl_divergence(q, between)
    if kind == "skew_kl":
        return kl_divergence(p, mixture(parameter))
    assert kind == "skew_reverse_kl", kind
    return kl_divergence(q, mixture(1 - parameter))


def logits_of(predictions: Any) -> Tensor:
    """All logits of a model's predictions."""
    if isinstance(predictions, DensePredictions):
        return predictions.logits
    assert isinstance(predictions, VocabularyPredictions)
    products = predictions.head(predictions.hidden)
    assert isinstance(products, Tensor)
    added = predictions.head.added
    return predictions.head.rule(products if added is None else products + added)


def probe_logits(probes: FilterProbes, states: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """All logits of each probe."""
    return [logits_of(probes.predict(place, state, inputs)) for place, state in enumerate(states)]


def run_frozen(model: FrozenModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All logits, and the tapped states."""
    states: dict[int, Tensor] = {}
    logits: list[Tensor] = []
    model(inputs, lambda predictions: logits.append(logits_of(predictions)), on_state=states.__setitem__)
    return logits[0], tuple(states[place] for place in sorted(states))


def plain_cka(student: Tensor, teacher: Tensor) -> Tensor:
    """One less the linear CKA of a text's tokens, ``[tokens, width]``, times their number: by centred Gram matrices.

    (Kornblith et al. 2019, equations 3 and 4.) Fewer than two have none.
    """
    count = len(student)
    if count < 2:
        return student.sum() * 0
    centre = torch.eye(count, dtype=student.dtype) - 1 / count
    own, other = (centre @ one @ one.T @ centre for one in (student, teacher))
    return count * (1 - torch.trace(own @ other) / (torch.trace(own @ own) * torch.trace(other @ other)).sqrt())


def plain_relations(student: Tensor, teacher: Tensor, kept: Tensor, num_heads: int) -> Tensor:
    """The mean over kept tokens and heads of the KL between relations of rows' kept tokens, by torch.distributions.

    (Wang et al. 2021, equations 5 to 8, of one kind of vectors, ``[rows, seq, width]``.) 0 of nothing at all.
    """
    found = []
    for own, other, rows in zip(student, teacher, kept, strict=True):
        for mine, theirs in zip(own[rows].chunk(num_heads, dim=-1), other[rows].chunk(num_heads, dim=-1), strict=True):
            scores = [one @ one.T / one.shape[-1] ** 0.5 for one in (theirs, mine)]
            found += [kl_divergence(*(Categorical(logits=one) for one in rows)) for rows in zip(*scores, strict=True)]
    return torch.stack(found).mean() if found else student.sum() * 0
