"""What a student learns from: a frozen model that runs here, nothing on this pipeline stage, or a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import Taught


class Teacher(Protocol):
    """What a student learns from: a model that runs, or what one said before."""

    def teach(
        self,
        batch: Batch,
        then: Callable[[Taught | None], None],
        *,
        with_predictions: bool,
        on_state: Callable[[int, Tensor], None] | None,
    ) -> None:
        """Hand over each state, by its place in the layer map, and then the predictions (None without them)."""
        ...


class AbsentTeacher:
    """What a pipeline stage without any of the teacher's blocks learns from."""

    def teach(
        self,
        batch: Batch,  # noqa: ARG002 - as the others
        then: Callable[[Taught | None], None],
        *,
        with_predictions: bool,
        on_state: Callable[[int, Tensor], None] | None,  # noqa: ARG002 - as the others
    ) -> None:
        """Nothing to hand over."""
        assert not with_predictions, "a stage that needs predictions has the teacher's output"
        then(None)
