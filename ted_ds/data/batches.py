"""What training asks of a source of batches: a labelled set, a stream of corpora, or none where another rank reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ted_ds.data.loader import Batch
from ted_ds.data.reading.records import BadRecord


class Batches(Protocol):
    """This rank's microbatches of each step; the same steps on any number of ranks."""

    def __iter__(self) -> Iterator[list[Batch]]:
        """Itself."""
        ...

    def __next__(self) -> list[Batch]:
        """The next step's."""
        ...

    def state_dict(self, step: int | None = None) -> Mapping[str, Any] | None:
        """What is needed to go on after the steps given out, or after ``step``: JSON, or None."""
        ...

    def progress(self) -> Mapping[str, float]:
        """Numbers for the report; sums over ranks are those of the run."""
        ...

    def take_bad_records(self) -> list[BadRecord]:
        """Records that were skipped since the last call."""
        ...

    def close(self) -> None:
        """End what is open."""
        ...
