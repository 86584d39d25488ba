"""Stage I: train the filters on the task while the body stays frozen and in eval mode (TED, section "Stage I")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.numerics.layer_map import layer_names
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.runtime.frozen import FrozenModel


class FilterObjective:
    """The mean over filters of each one's task loss: K independent probes."""

    def __init__(self, terms: TaskTerms, body: FrozenModel, layers: Sequence[int]) -> None:
        self._terms, self._body = terms, body
        self._names = [f"loss/task/{name}" for name in layer_names(layers)]
        self.weights: Mapping[str, float] = dict.fromkeys(self._names, 1.0 / len(self._names))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Kept labels, the same for each filter."""
        return dict.fromkeys(self._names, self._terms.kept(batch.labels).sum())

    def totals(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """The task loss of each filter's head; ``forward`` is the probes'."""
        _, states = self._body(batch.inputs, with_logits=False)
        logits = forward(states, batch.attention_mask)
        return {name: self._terms.loss_sum(one, batch.labels) for name, one in zip(self._names, logits, strict=True)}
