"""What a teacher predicted of a vocabulary, as far as it was kept on a disk."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ted_ds.numerics.divergences import Divergence
from ted_ds.numerics.teacher_predictions import DrawnPredictions, KeptPredictions, OnDisk


@dataclass(frozen=True)
class CachedPredictions:
    """Those of a batch, one row for each of its output rows (:attr:`ted_ds.data.loader.Batch.output_rows`)."""

    ids: Tensor
    """``[rows, kept]``."""
    numbers: Tensor
    """``[rows, kept + 1]`` (:class:`ted_ds.numerics.keeping.Kept`); anything where the teacher was not asked."""
    drawn: bool
    """Whether they were drawn; else they are the most probable ones."""
    temperature: float
    """At which they were kept."""
    task_loss: Tensor | None
    """The sum of the teacher's own task loss over the batch; None where it is not known."""
    among_kept: bool = False
    """Whether nothing is known of the ids that were not kept."""

    def targets(
        self, divergence: Divergence, *, weight: float | Tensor, temperature: float, num_shared_ids: int | None
    ) -> OnDisk:
        """What a student's predictions are held against."""
        assert temperature == self.temperature, "the temperature names a cache"
        if self.drawn:
            return DrawnPredictions(self.ids, self.numbers, temperature, weight, num_shared_ids)
        kept = (self.ids, self.numbers, temperature, weight, num_shared_ids, divergence)
        return KeptPredictions(*kept, among_kept=self.among_kept)
