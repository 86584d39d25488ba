"""Which rank the others wait for: its own work takes longer than theirs, step after step."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from ted_ds.output.chatter import LOGS
from ted_ds.output.step_parts import COMMUNICATION, PARTS
from ted_ds.phases.pace import OfRank

WINDOW_S = 30.0
"""So long ranks are watched before they are compared: a pause of the system is no straggler."""
MIN_STEPS = 5
SLOWER = 1.5
"""By which factor a rank is slower than the median of its peers to be named."""
SLOWEST = "perf/slowest_rank"
TO_MEDIAN = "perf/slowest_rank/to_median"
"""Its own work in that of the median; on GPUs of one kind some 1.05."""


OWN_WORK_FILE = "own_work.jsonl"


def note_own_work(output_dir: Path, phase: str, step: int, of_ranks: Sequence[OfRank]) -> None:
    """Add a line with each rank's own work to a file for people: hundreds of numbers are nothing for trackers.

    ``own_s`` has seconds of a step since the last report, rank by rank; null where none was timed. On one rank only.

    Raises:
        OSError: The disk refuses.
    """
    own = [_own_s(one) for one in of_ranks]
    folder = output_dir / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OWN_WORK_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "phase": phase, "step": step, "own_s": own}) + "\n")


def _own_s(one: OfRank) -> float | None:
    seconds = sum(one.clock.get(part, 0.0) for part in PARTS if part != COMMUNICATION)
    return round(seconds / one.clock["steps"], 6) if one.clock["steps"] else None


class Stragglers:
    """Compares ranks that do the same work: those of a pipeline's stage, all of them where there is none.

    A rank's own work is a step without what it waits for others: a step takes all ranks as long as the slowest one,
    whose own work is all of it, while the others' is in part ``communication``.
    """

    def __init__(self, hosts: Sequence[str], num_stages: int) -> None:
        self._hosts, self._num_stages = hosts, num_stages
        self._named: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._seconds: list[dict[str, float]] = [{} for _ in self._hosts]
        self._num_steps = [0.0 for _ in self._hosts]

    def take(self, of_ranks: Sequence[OfRank]) -> tuple[dict[str, float], str | None]:
        """Take what ranks have measured since the last report.

        Returns:
            Metrics, when there is enough to compare, else none; and in words who keeps the others waiting, once for
            each rank that begins to.
        """
        for rank, one in enumerate(of_ranks):
            self._num_steps[rank] += one.clock["steps"]
            for part in PARTS:
                self._seconds[rank][part] = self._seconds[rank].get(part, 0.0) + one.clock.get(part, 0.0)
        if min(self._num_steps) < MIN_STEPS or min(sum(one.values()) for one in self._seconds) < WINDOW_S:
            return {}, None
        own = [
            {part: value / steps for part, value in seconds.items() if part != COMMUNICATION}
            for seconds, steps in zip(self._seconds, self._num_steps, strict=True)
        ]
        self._begin()
        work = [sum(parts.values()) for parts in own]
        found = [_slowest(ranks, work) for ranks in self._peers() if len(ranks) > 1]
        if not found:
            return {}, None
        to_median, rank, median = max(found)
        metrics = {SLOWEST: float(rank), TO_MEDIAN: to_median}
        before, self._named = self._named, rank if to_median > SLOWER else None
        if self._named is None or self._named == before:
            return metrics, None
        most = max(own[rank], key=own[rank].__getitem__)
        return metrics, (
            f"rank {rank} on {self._hosts[rank]} keeps the others waiting: {work[rank]:.3g} s of its own work a "
            f"step, {own[rank][most]:.3g} s of it {most}; the median of its peers is {median:.3g} s. Look at that host "
            "(other programs, clocks, disk)"
        )

    def _peers(self) -> list[range]:
        size = len(self._hosts) // self._num_stages
        return [range(stage * size, (stage + 1) * size) for stage in range(self._num_stages)]


def _slowest(ranks: Sequence[int], work: Sequence[float]) -> tuple[float, int, float]:
    """The slowest of some, by its factor over the median of the others, its rank, and that median in seconds."""
    slowest = max(ranks, key=work.__getitem__)
    median = statistics.median(work[rank] for rank in ranks if rank != slowest)
    return work[slowest] / median if median else 1.0, slowest, median
