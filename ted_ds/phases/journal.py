"""What a run writes down as it goes: its numbers, and the records that it could not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ted_ds.config.data import BadRecords
from ted_ds.data.bad_records import Ledger
from ted_ds.data.reading.records import BadRecord
from ted_ds.errors import DataError
from ted_ds.output.tracking import Tracker
from ted_ds.runtime.world import World


class Journal:
    """Rank 0 has the files, once there is something to write into; the other ranks have none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tracker: Tracker | None = None
        self._ledger: Ledger | None = None

    def keep_numbers(self, tracker: Tracker) -> None:
        """Write numbers down by ``tracker`` from now on, and close it in the end. On one rank only."""
        self._tracker = tracker

    def keep_bad_records(self, ledger: Ledger) -> None:
        """List records that cannot be read in ``ledger`` from now on. On one rank only."""
        self._ledger = ledger

    @property
    def tracker(self) -> Tracker | None:
        """Where numbers go; None on the other ranks, and while it is not open."""
        return self._tracker

    @property
    def ledger(self) -> Ledger | None:
        """Where bad records are listed; None likewise."""
        return self._ledger

    def track(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write numbers down. Every rank must call it: a disk that is full ends all of them.

        Raises:
            TedError: They cannot be written; on every rank.
        """
        with self._world.together():
            if self._tracker is not None:
                self._tracker.log(phase, step, values)

    def rewind(self, phase: str, step: int, scored_step: int = 0) -> None:
        """Forget the numbers of a phase that come again; see :meth:`Tracker.rewind`. Every rank must call it."""
        with self._world.together():
            if self._tracker is not None:
                self._tracker.rewind(phase, step, scored_step)

    def list_bad_records(self, records: Sequence[BadRecord], num_read: int, limits: BadRecords) -> None:
        """List records that cannot be read, if there is a list. On one rank only.

        Raises:
            DataError: They are too many of those that were read.
        """
        if self._ledger is None:
            return
        self._ledger.add(records)
        reason = self._ledger.judge(num_read, limits)
        if reason is not None:
            raise DataError(reason)

    def close(self) -> None:
        """Finish what is open."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
