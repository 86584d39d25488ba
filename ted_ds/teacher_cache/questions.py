"""What a rank asks the teacher, in microbatches that any number of ranks would ask, from wherever it was left."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.samples import Sample
from ted_ds.data.stream.lane import LaneItem
from ted_ds.teacher_cache.parts import Part


class Questions(Protocol):
    """A rank's."""

    @property
    def rounds(self) -> int:
        """Its microbatches that are left."""
        ...

    @property
    def counts(self) -> Mapping[int, int]:
        """How many samples each of its lanes has, once all were asked for; a set is one lane of every rank."""
        ...

    def next(self) -> list[Sample]:
        """The next one's rows; none where this rank has no more."""
        ...

    def left(self) -> Any:
        """From where to go on behind what was asked, as JSON."""
        ...

    def close(self) -> None:
        """End what is open."""
        ...


class SetQuestions:
    """Those of a labelled set, the longest texts first: what does not fit into memory shows at once."""

    def __init__(
        self, samples: Sequence[Sample], done: Collection[Part], *, size: int, rank: int, num_ranks: int
    ) -> None:
        """Ask for what is not ``done``, ``size`` texts at a time."""
        known = {int(sample) for part in done for sample in part.rows[:, 0]}
        self.counts = {0: len(samples)}
        """See :class:`Questions`."""
        by_length = sorted(samples, key=lambda sample: (-len(sample.input_ids), sample.index))
        shares = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        self._shares = deque([one for one in shares if not known.issuperset(s.index for s in one)][rank::num_ranks])

    @property
    def rounds(self) -> int:
        """See :class:`Questions`."""
        return len(self._shares)

    def next(self) -> list[Sample]:
        """See :class:`Questions`."""
        return self._shares.popleft() if self._shares else []

    def left(self) -> None:
        """See :class:`Questions`: what is written says it."""

    def close(self) -> None:
        """Nothing is open."""


class StreamQuestions:
    """Those of the steps of a stream: each microbatch holds successive sequences of one lane."""

    def __init__(
        self,
        data: CorpusData,
        done: Collection[Part],
        *,
        steps: int,
        num_lanes: int,
        size: int,
        rank: int,
        num_ranks: int,
        **reading: Any,
    ) -> None:
        """Ask for the first ``steps`` of each lane, ``size`` sequences at a time.

        ``reading`` is how :meth:`~ted_ds.data.corpus_data.CorpusData.lanes` reads them.
        """
        of_parts = [part.rows[:, 0] for part in done]
        known = np.isin(np.arange(steps * num_lanes), np.concatenate([np.zeros(0, np.int64), *of_parts]))
        self._known = known.reshape(steps, num_lanes)
        self._steps, self._size = steps, size
        self._lanes = range(rank, num_lanes, num_ranks)
        self._states: dict[int, dict[str, Any]] = {}
        behind: dict[int, int] = {}
        for lane in self._lanes:
            # not behind what is missing: one part of several may be lost
            whole = steps if self._known[:, lane].all() else int(self._known[:, lane].argmin())
            left = [part.left[str(lane)] for part in done if str(lane) in part.left]
            there = max((one for one in left if one["step"] <= whole), key=lambda one: one["step"], default=None)
            behind[lane] = 0 if there is None else there["step"]
            if there is not None:
                self._states[lane] = there
        self._ends: dict[int, int] = {}
        self._open = [lane for lane in self._lanes if behind[lane] < steps]
        self.rounds = sum(
            not self._are_known(lane, first) for lane in self._open for first in range(behind[lane], steps, size)
        )
        """See :class:`Questions`."""
        own = {lane: self._states[lane] for lane in self._open if lane in self._states}
        self._workers = data.lanes(self._open, own, num_lanes=num_lanes, **reading) if self._open else None
        self._waiting: deque[tuple[int, list[LaneItem]]] = deque()

    @property
    def counts(self) -> Mapping[int, int]:
        """See :class:`Questions`: as many as steps, or as there were when its sources were at their end."""
        return {lane: self._ends.get(lane, self._steps) for lane in self._lanes}

    def next(self) -> list[Sample]:
        """See :class:`Questions`."""
        while not self._waiting and self.rounds:
            self._read()
        if not self._waiting:
            return []
        lane, items = self._waiting.popleft()
        self._states[lane] = items[-1].state
        self.rounds -= 1
        return [item.sample for item in items if item.sample is not None]

    def left(self) -> Mapping[str, Any]:
        """See :class:`Questions`: each lane behind what was asked of it."""
        return {str(lane): state for lane, state in self._states.items()}

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()

    def _are_known(self, lane: int, first: int) -> bool:
        """Whether all of a lane's microbatch from a step on is written."""
        return bool(self._known[first : first + self._size, lane].all())

    def _read(self) -> None:
        """The next microbatch of each lane that is not at its end; what is written is read past."""
        assert self._workers is not None, "rounds are left of lanes that are not open"
        found: dict[int, list[LaneItem]] = {}
        for _ in range(self._size):
            for item in self._workers.next():
                if item.state["step"] > self._steps:
                    continue
                found.setdefault(item.lane, []).append(item)
                if item.sample is None:
                    self._ends.setdefault(item.lane, item.state["step"] - 1)
        for lane, items in found.items():
            if self._are_known(lane, items[0].state["step"] - 1):
                self._states[lane] = items[-1].state
            else:
                self._waiting.append((lane, items))
