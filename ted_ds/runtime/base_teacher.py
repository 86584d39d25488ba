"""A student with adapters as its own teacher: while they are off, it is the base they are beside.

So that base is held once, whole or in the student's ZeRO-3 shards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.adapters import without_adapters
from ted_ds.models.predictions import Predictions
from ted_ds.models.taps import TappedModel
from ted_ds.runtime.frozen import run_without_graph


class BaseTeacher:
    """Teaches from within the student's forward, where an engine that shards the weights has them at hand."""

    def __init__(self, tapped: TappedModel) -> None:
        """Run a second ``tapped`` model around the student's, at the teacher's side of the layer map."""
        self._tapped = tapped

    def teach(
        self,
        batch: Batch,
        then: Callable[[Predictions | None], None],
        *,
        with_predictions: bool,
        on_state: Callable[[int, Tensor], None] | None,
    ) -> None:
        """See :class:`ted_ds.runtime.teacher.Teacher`; nothing is dropped, whatever the student does."""
        tapped, model = self._tapped, self._tapped.model
        was_training = model.training
        model.eval()
        try:
            with without_adapters(model):
                # not in inference mode: a model that trains may keep what it computes there, as positions
                without_graph = torch.no_grad()
                run_without_graph(
                    tapped, batch.inputs, then, without_graph, with_predictions=with_predictions, on_state=on_state
                )
        finally:
            model.train(was_training)
