"""What a rank asks the teacher, in microbatches that any number of ranks would ask, from wherever it was left."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.samples import Sample
from ted_ds.data.stream.lane import LaneItem
from ted_ds.teacher_cache.store import Part


class Questions(Protocol):
    """A rank's."""

    @property
    def rounds(self) -> int:
        """Its microbatches that are left."""
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
        states: dict[int, dict[str, Any]] = {}
        for part in done:
            for lane, state in part.left.items():
                if state["step"] > states.get(int(lane), {"step": 0})["step"]:
                    states[int(lane)] = state
        lanes = range(rank, num_lanes, num_ranks)
        behind = {lane: states[lane]["step"] if lane in states else 0 for lane in lanes}
        self._steps, self._size = steps, size
        self._open = [lane for lane in lanes if behind[lane] < steps]
        self.rounds = sum(-(-(steps - behind[lane]) // size) for lane in self._open)
        self._states = {lane: states[lane] for lane in lanes if lane in states}
        own = {lane: self._states[lane] for lane in self._open if lane in self._states}
        self._workers = data.lanes(self._open, own, num_lanes=num_lanes, **reading) if self._open else None
        self._waiting: deque[tuple[int, list[LaneItem]]] = deque()

    def next(self) -> list[Sample]:
        """See :class:`Questions`."""
        if not self._waiting:
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

    def _read(self) -> None:
        """The next microbatch of each lane that is not at its end."""
        if self._workers is None or not self.rounds:
            return
        found: dict[int, list[LaneItem]] = {}
        for _ in range(self._size):
            for item in self._workers.next():
                if item.state["step"] <= self._steps:
                    found.setdefault(item.lane, []).append(item)
        self._waiting.extend(found.items())
