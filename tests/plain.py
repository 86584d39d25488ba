"""The plain way to what the product computes in a fused or streamed way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ted_ds.models.heads import FilterProbes
from ted_ds.models.predictions import DensePredictions, VocabularyPredictions
from ted_ds.runtime.frozen import FrozenModel


def logits_of(predictions: Any) -> Tensor:
    """All logits of a model's predictions."""
    if isinstance(predictions, DensePredictions):
        return predictions.logits
    assert isinstance(predictions, VocabularyPredictions)
    logits = predictions.head(predictions.hidden)
    assert isinstance(logits, Tensor)
    return logits


def probe_logits(probes: FilterProbes, states: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """All logits of each probe."""
    return [logits_of(probes.predict(place, state, inputs)) for place, state in enumerate(states)]


def run_frozen(model: FrozenModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All logits, and the tapped states."""
    states: dict[int, Tensor] = {}
    logits: list[Tensor] = []
    model(inputs, lambda predictions: logits.append(logits_of(predictions)), on_state=states.__setitem__)
    return logits[0], tuple(states[place] for place in sorted(states))
