"""This rank's part of a stream of packed sequences, with its exact state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.documents import Encoder
from ted_ds.data.stream.settings import StreamSettings
from ted_ds.data.stream.workers import LaneWorkers
from ted_ds.errors import DataError

STATE_VERSION = 2


class CorpusStream(Iterator[list[Batch]]):
    """For each step, this rank's microbatches.

    Rank r of W takes the lanes r, r + W, r + 2W, ...: a step holds the same sequences on any number of ranks.
    """

    def __init__(
        self,
        settings: StreamSettings,
        encode: Encoder,
        collate: Collator,
        division: StepDivision,
        *,
        num_workers: int,
        timeout_s: float,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Start at the beginning, or where a state of :func:`merge_states` was.

        Raises:
            DataError: The state is of another stream.
        """
        assert division.micro_batch_size is not None  # the recipe refuses a token budget for packed sequences
        assert division.global_batch_size == settings.num_lanes
        self._settings, self._collate, self._micro_batch_size = settings, collate, division.micro_batch_size
        lanes = range(division.rank, settings.num_lanes, division.world_size)
        states = {} if state is None else _lane_states(state, settings, lanes)
        self._step = 0 if state is None else int(state["step"])
        self._workers = LaneWorkers(settings, encode, lanes, states, num_workers=num_workers, timeout_s=timeout_s)
        self._before: tuple[int, dict[int, dict[str, Any]]] = (self._step, {})
        self._bad: list[BadRecord] = []

    def __next__(self) -> list[Batch]:
        """The next step's microbatches; without any token where the stream is over.

        Raises:
            DataError: See :class:`LaneWorkers`.
        """
        before = (self._step, self._workers.states())
        items = self._workers.next()
        self._before = before
        self._step += 1
        for item in items:
            self._bad += item.bad
        rows, size = [item.sample for item in items], self._micro_batch_size
        return [self._collate(rows[begin : begin + size]) for begin in range(0, len(rows), size)]

    @property
    def step(self) -> int:
        """How many steps have been given out."""
        return self._step

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """This rank's lanes as JSON, after the last step given out or after ``step``; see :func:`merge_states`.

        Raises:
            ValueError: ``step`` is neither the last one nor the one before.
        """
        places = {self._before[0]: self._before[1], self._step: self._workers.states()}
        step = self._step if step is None else step
        if step not in places:
            raise ValueError(f"the place after step {step} is not kept, only those after {sorted(places)}")
        lanes = {str(lane): state for lane, state in places[step].items()}
        return {
            "version": STATE_VERSION,
            "kind": "corpus",
            "step": step,
            "stream": self._settings.fingerprint(),
            "lanes": lanes,
        }

    def progress(self) -> dict[str, float]:
        """Tokens, records and epochs of each source in this rank's lanes; sums over ranks are those of the run."""
        numbers: dict[str, float] = {}
        for state in self._workers.states().values():
            for source, one in zip(self._settings.sources, state["sources"], strict=True):
                for key, value in (
                    ("tokens", one["tokens"]),
                    ("records", one["records"]),
                    ("epochs", one["epoch"] / self._settings.num_lanes),
                ):
                    name = f"data/{source.name}/{key}"
                    numbers[name] = numbers.get(name, 0) + value
        return numbers

    def take_bad_records(self) -> list[BadRecord]:
        """Records that were skipped since the last call."""
        bad = [*self._bad, *self._workers.bad]
        self._bad, self._workers.bad = [], []
        return bad

    def close(self) -> None:
        """End its workers."""
        self._workers.close()


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of a stream out of the states of all ranks."""
    merged = dict(states[0])
    if "lanes" in merged:
        lanes = {lane: state for one in states for lane, state in one["lanes"].items()}
        merged["lanes"] = dict(sorted(lanes.items(), key=lambda pair: int(pair[0])))
    return merged


def _lane_states(state: Mapping[str, Any], settings: StreamSettings, lanes: Sequence[int]) -> dict[int, dict[str, Any]]:
    if state.get("kind") != "corpus" or state.get("version") != STATE_VERSION:
        raise DataError(
            f"stream state: kind {state.get('kind')!r}, version {state.get('version')!r}; this stream reads kind "
            f"'corpus', version {STATE_VERSION}"
        )
    now, then = settings.fingerprint(), state["stream"]
    differing = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if differing:
        shown = "; ".join(f"{key} was {then.get(key)!r:.200}, now {now.get(key)!r:.200}" for key in differing[:5])
        raise DataError(f"stream state: saved with other data settings, so it cannot go on: {shown}")
    if state["step"] == 0:
        return {}
    missing = [lane for lane in lanes if str(lane) not in state["lanes"]]
    if missing:
        raise DataError(f"stream state: lanes {missing[:5]} are missing; merge the states of all ranks first")
    return {lane: state["lanes"][str(lane)] for lane in lanes}
