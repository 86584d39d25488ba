"""The training data of a rank that is handed its microbatches by another one."""

from __future__ import annotations

from ted_ds.data.loader import Batch
from ted_ds.data.reading.records import BadRecord


class NoBatches:
    """:class:`ted_ds.data.batches.Batches` that reads nothing: the first stage of a pipeline does."""

    def __iter__(self) -> NoBatches:
        return self

    def __next__(self) -> list[Batch]:
        return []

    def state_dict(self, step: int | None = None) -> None:
        """Nothing to go on from."""

    def progress(self) -> dict[str, float]:
        """Nothing was read."""
        return {}

    def take_bad_records(self) -> list[BadRecord]:
        """Nothing was met."""
        return []

    def close(self) -> None:
        """Nothing is open."""
