"""Stage 0: train a model on the task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.numerics.losses import cross_entropy_sum, kept_labels


class FinetuneObjective:
    """The task loss: cross-entropy per kept label."""

    def __init__(self, task_weight: float = 1.0) -> None:
        self.weights: Mapping[str, float] = {"loss/task": task_weight}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Kept labels."""
        return {"loss/task": kept_labels(batch.labels).sum()}

    def totals(self, forward: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy; ``forward`` is a tapped model's."""
        logits, _ = forward(batch.inputs)
        return {"loss/task": cross_entropy_sum(logits, batch.labels)}
