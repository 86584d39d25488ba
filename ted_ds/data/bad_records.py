"""Records that were skipped: listed in a file, and too many of them a reason to stop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ted_ds.config.data import BadRecords
from ted_ds.data.reading.records import BadRecord
from ted_ds.errors import CheckpointError

LEDGER_FILE = "bad_records.jsonl"
FEWEST_JUDGED = 1000
"""Records after which a share of bad ones says something."""
SHOWN = 3


class Ledger:
    """The list of skipped records in the output folder, each once, over all phases and restarts. On one rank only."""

    def __init__(self, folder: Path) -> None:
        """Take up the list that is there, without a last line that was only half written.

        Raises:
            CheckpointError: It is damaged.
        """
        self.path = folder / LEDGER_FILE
        self._known: set[BadRecord] = set()
        self._of_phase: set[BadRecord] = set()
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                self.path.write_bytes(whole)
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    self._known.add(BadRecord(**json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise CheckpointError(f"{self.path}: line {number} is damaged ({error}); remove it") from error

    def __len__(self) -> int:
        return len(self._known)

    def begin_phase(self, found: Iterable[BadRecord] = ()) -> None:
        """Judge by what is added from now on, and what was ``found`` before a checkpoint of the phase."""
        self._of_phase = set(found)

    def of_phase(self) -> list[BadRecord]:
        """Those of the phase that runs."""
        return sorted(self._of_phase)

    def add(self, records: Iterable[BadRecord]) -> None:
        """Write down those that are new."""
        records = [*records]
        self._of_phase.update(records)
        new = [record for record in dict.fromkeys(records) if record not in self._known]
        if new:
            self._known.update(new)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record._asdict()) + "\n" for record in new)

    def some(self) -> list[BadRecord]:
        """A few of them."""
        return sorted(self._known)[:SHOWN]

    def judge(self, num_read: int, limits: BadRecords) -> str | None:
        """Why a run should stop, when its phase has read so many records; None if it should not."""
        # the limit of their number is for all phases together, a share is one of what the phase itself has read
        num_bad = len(self) if len(self) > limits.max_count else len(self._of_phase)
        reason = too_many(num_bad, num_read, sorted(self._of_phase) or self.some(), limits, is_complete=False)
        return None if reason is None else f"{reason}. All are listed in {self.path}"


def too_many(
    num_bad: int, num_read: int, examples: Sequence[BadRecord], limits: BadRecords, *, is_complete: bool
) -> str | None:
    """Why a run should stop for its bad records; None if it should not.

    Args:
        num_bad: Records skipped.
        num_read: Records read, these included.
        examples: Some of those skipped, for the message.
        limits: What the recipe allows.
        is_complete: Whether all records there are have been read, so that a share of few is a share.
    """
    judged = is_complete or num_read >= FEWEST_JUDGED
    if num_bad <= limits.max_count and not (judged and num_bad > limits.max_fraction * num_read):
        return None
    shown = "; ".join(f"{record.file}: {record.position}: {record.fault}" for record in examples[:SHOWN])
    return (
        f"{shown}. {num_bad} of {num_read} records cannot be used, more than data.bad_records allows "
        f"(max_fraction {limits.max_fraction:g}, max_count {limits.max_count}); mend them, or raise the limit"
    )
