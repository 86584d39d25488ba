"""What became of an attempt, from what its ranks left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import RankLostError, StoppedOnRequest, counted
from ted_ds.launching.positions import positions_in_words
from ted_ds.launching.records import RankRecord, log_file, read_records, record_file

COMPLETE, STOPPED, RANK_LOST = 0, StoppedOnRequest.exit_code, RankLostError.exit_code
NUM_LINES = 20
MOST_BYTES = 16_384
"""Of a log, from its end, where those lines are looked for."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    code: int
    """0 complete; 75 stopped on request and 76 a rank was lost: start it again; anything else: mend something first."""
    text: str
    """The same in words, with the last lines of the rank that failed first."""
    missing: tuple[int, ...] = ()
    """Ranks that left no record."""
    has_records: bool = True
    faulty_host: str | None = None
    """Where a GPU failed first, if that ended the attempt."""


class FaultsInARow:
    """Counts attempts, one after the other, that hardware of the same host ended."""

    def __init__(self) -> None:
        self._host: str | None = None
        self._number = 0

    def add(self, outcome: Outcome) -> int:
        """How many there are with this attempt; 0 where no GPU ended it."""
        self._number = self._number + 1 if outcome.faulty_host == self._host else 1
        self._host = outcome.faulty_host
        return self._number if self._host is not None else 0


def outcome_of(folder: Path, launcher_code: int) -> Outcome:
    """What became of the attempt in a folder, whose launcher ended with a code.

    A rank that saw another one go (76) is not what failed. A rank that died without a word is, unless it had been asked
    to stop before: launchers end the others of its host.
    """
    records = read_records(folder)
    if not records:
        said = f"the launcher ended with exit code {launcher_code}" if launcher_code else "the launcher just ended"
        code = launcher_code if launcher_code >= 0 else 128 - launcher_code
        return Outcome(code or 1, f"no rank has started: {said}; its output says more", has_records=False)
    failed = [one for one in records if one.code not in (None, COMPLETE, STOPPED, RANK_LOST)]
    if failed:
        first = min(failed, key=lambda one: _written(record_file(folder, one.rank), one))
        assert first.code is not None
        return Outcome(first.code, _about(folder, first, f"ended with exit code {first.code}"))
    codes = [one.code for one in records]
    if STOPPED in codes:  # they agree on it
        return Outcome(STOPPED, "stopped on request; what there was is saved")
    missing = sorted(set(range(max(one.num_ranks for one in records))) - {one.rank for one in records})
    # of some hosts there may be nothing here, where each has a folder of its own
    if all(code == COMPLETE for code in codes) or (records[0].rank == 0 and codes[0] == COMPLETE):
        return Outcome(COMPLETE, "complete")
    faulty = [one for one in records if one.fault is not None]
    if faulty:
        first = min(faulty, key=lambda one: _written(record_file(folder, one.rank), one))
        text = _about(folder, first, f"had a fault of its hardware ({first.fault})")
        return Outcome(RANK_LOST, text, faulty_host=first.host)
    silent = [one for one in records if one.code is None]
    at = "".join(f"\n    {line}" for line in positions_in_words(folder))
    if not silent:
        last = max(records, key=lambda one: _written(record_file(folder, one.rank), one))
        which = f"of rank {_some(missing)} there is nothing in {folder}" if missing else ""
        which = which or f"the last to say so was rank {last.rank} on {last.host}"  # woken by the end of the others
        return Outcome(RANK_LOST, f"the ranks lost each other; {which}{at}", tuple(missing))
    first = min(
        silent, key=lambda one: (one.asked_at is not None, one.asked_at or _written(log_file(folder, one.rank), one))
    )
    return Outcome(RANK_LOST, _about(folder, first, "died or hangs") + at)


def _some(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {counted(len(ranks) - 8, 'other')}"


def _written(file: Path, record: RankRecord) -> float:
    """When a rank last wrote a file, by the clock of the file system: hosts' own clocks differ."""
    try:
        return file.stat().st_mtime
    except OSError:
        return record.began


def _about(folder: Path, record: RankRecord, what: str) -> str:
    file = log_file(folder, record.rank)
    lines = [f"rank {record.rank} on {record.host} was the first to fail: it {what}. Its last lines, of {file}:"]
    try:
        with file.open("rb") as log:
            log.seek(max(file.stat().st_size - MOST_BYTES, 0))
            lines += log.read().decode(errors="replace").splitlines()[-NUM_LINES:] or ["(nothing)"]
    except OSError as error:
        lines.append(f"(cannot be read: {error})")
    return "\n    ".join(lines)
