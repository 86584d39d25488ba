"""Stage 0: train a model on the task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import LossWeights, Predictions
from ted_ds.numerics.objective import combine
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.objectives.term import Term, Terms
from ted_ds.runtime.step_clock import FORWARD, LOSSES, timed

TASK = "loss/task"
BALANCE = "loss/router_balance"


def label_counter(task: TaskTerms) -> Callable[[Batch], Tensor]:
    """Counts the kept labels of a microbatch."""
    return lambda batch: task.kept(batch.labels).sum()


def balance_terms(task: TaskTerms) -> list[Term]:
    """The auxiliary loss of routers, per kept token, where the trained model has one."""
    if task.balance_weight == 0:
        return []
    return [Term(BALANCE, task.balance_weight, lambda batch: batch.kept_tokens.sum())]


class FinetuneObjective(Terms):
    """The task loss, per kept label, and that of routers."""

    def __init__(self, task: TaskTerms, task_weight: float = 1.0) -> None:
        super().__init__([Term(TASK, task_weight, label_counter(task)), *balance_terms(task)])
        self._task = task

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A microbatch's share of the step's loss, and its sum; ``forward`` is a tapped or filtered model's."""
        totals: dict[str, Tensor] = {}

        @timed(LOSSES)
        def learn(predictions: Predictions | None, _: Any) -> Tensor:
            if predictions is None:  # they are made on the last stage of a pipeline
                return combine({}, {}, {})
            losses = predictions.losses(self._task, batch, LossWeights())
            sums = {TASK: losses.weighted}
            if BALANCE in self.weights:
                sums[BALANCE] = predictions.balance(batch)
                totals[BALANCE] = sums[BALANCE].detach()
            totals[TASK] = losses.task
            return combine(sums, counts, self.weights)

        with timed(FORWARD):
            return forward(batch.inputs, learn), totals
