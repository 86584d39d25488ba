"""Stage 0: train a model on the task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.numerics.task_terms import TaskTerms


class FinetuneObjective:
    """The task loss, per kept label."""

    def __init__(self, terms: TaskTerms, task_weight: float = 1.0) -> None:
        self._terms = terms
        self.weights: Mapping[str, float] = {"loss/task": task_weight}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Kept labels."""
        return {"loss/task": self._terms.kept(batch.labels).sum()}

    def totals(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """The task loss; ``forward`` is a tapped model's."""
        logits, _ = forward(batch.inputs)
        return {"loss/task": self._terms.loss_sum(logits, batch.labels)}
