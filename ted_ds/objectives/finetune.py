"""Stage 0: train a model on the task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import LossWeights, Predictions
from ted_ds.numerics.objective import combine
from ted_ds.numerics.task_terms import TaskTerms

TASK = "loss/task"


class FinetuneObjective:
    """The task loss, per kept label."""

    def __init__(self, terms: TaskTerms, task_weight: float = 1.0) -> None:
        self._terms = terms
        self.weights: Mapping[str, float] = {TASK: task_weight}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Kept labels."""
        return {TASK: self._terms.kept(batch.labels).sum()}

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A microbatch's share of the step's loss, and its sum; ``forward`` is a tapped or filtered model's."""
        totals: dict[str, Tensor] = {}

        def learn(predictions: Predictions | None, _: Any) -> Tensor:
            if predictions is None:  # they are made on the last stage of a pipeline
                return combine({}, {}, {})
            losses = predictions.losses(self._terms, batch.labels, LossWeights())
            totals[TASK] = losses.task
            return combine({TASK: losses.weighted}, counts, self.weights)

        return forward(batch.inputs, learn), totals
