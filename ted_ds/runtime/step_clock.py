"""Where the time of a step goes: its parts sum up to it, and nobody waits for the device to find out.

Time is dealt out by laps: what passes between two marks belongs to the innermost part that is open between them. On a
GPU marks are events on the stream that computes, read once they are behind it; so what other streams do meanwhile, or
the host, counts only where computing waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from deepspeed.comm import comm

from ted_ds.output.step_parts import COMMUNICATION, OTHER

COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "inference_all_reduce",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "all_to_all_single",
    "send",
    "recv",
)
"""What DeepSpeed's engines send by."""
WAITS = (
    (torch.cuda, ("synchronize",)),
    (torch.cuda.Stream, ("synchronize", "wait_stream", "wait_event")),
    (torch.cuda.Event, ("synchronize",)),
)
"""How they wait for what was sent on streams beside the one that computes (``overlap_comm``). Marks are on that one, so
that such a wait takes the time for which it stands still, and not that of its own work before."""

_running: StepClock | None = None
"""The clock of the step that is going on: a process takes one at a time."""


class _Marks(Protocol):
    """A kind of time."""

    def now(self) -> Any:
        """A mark."""
        ...

    def is_behind(self, mark: Any) -> bool:
        """Whether a mark can be read."""
        ...

    def between(self, one: Any, other: Any) -> float:
        """Seconds from one mark to another."""
        ...

    def give_back(self, mark: Any) -> None:
        """Nobody reads it any more."""
        ...


class _HostMarks:
    """Of a CPU, which computes as it goes."""

    now = staticmethod(time.perf_counter)

    def is_behind(self, mark: float) -> bool:  # noqa: ARG002 - as the other
        return True

    def between(self, one: float, other: float) -> float:
        return other - one

    def give_back(self, mark: float) -> None:
        """Nothing to keep."""


class _DeviceMarks:
    """Of a GPU, which is behind the host that tells it what to do."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._free = device, []

    def now(self) -> Any:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        # the stream that computes, whichever is current: collectives have one of their own
        event.record(torch.cuda.default_stream(self._device))
        return event

    def is_behind(self, mark: Any) -> bool:
        return mark.query()

    def between(self, one: Any, other: Any) -> float:
        return one.elapsed_time(other) / 1000

    def give_back(self, mark: Any) -> None:
        self._free.append(mark)


class StepClock:
    """Times steps, and tells what they took on average."""

    def __init__(self, device: torch.device) -> None:
        self._marks: _Marks = _DeviceMarks(device) if device.type == "cuda" else _HostMarks()
        self._open: list[str] = []
        self._laps: list[tuple[str, Any]] = []
        """The part that ended with each mark; the first mark is the step's beginning."""
        self._unread: list[tuple[list[tuple[str, Any]], int]] = []
        """Of each step that is over, its laps and tokens."""
        self._seconds: dict[str, float] = {}
        self._num_steps = self._num_tokens = 0
        time_collectives()
        if device.type == "cuda":
            for owner, names in WAITS:
                time_waits(owner, names)

    @contextlib.contextmanager
    def step(self, num_tokens: Callable[[], int]) -> Iterator[None]:
        """Time what is done within as one step of so many tokens; one that fails does not count."""
        global _running
        self._open, self._laps = [OTHER], [(OTHER, self._marks.now())]
        _running = self
        try:
            yield
            self._lap()
            self._unread.append((self._laps, num_tokens()))
        finally:
            _running = None
        self._read()

    def enter(self, part: str) -> None:
        """What comes next belongs to a part."""
        self._lap()
        self._open.append(part)

    def leave(self) -> None:
        """The innermost part is over."""
        self._lap()
        self._open.pop()

    def take(self) -> dict[str, float]:
        """Since the last call: ``steps`` and ``tokens``, and by part the seconds of all of these steps.

        On a GPU, steps that it has not done with yet are left for the next call.
        """
        self._read()
        taken = {"steps": float(self._num_steps), "tokens": float(self._num_tokens), **self._seconds}
        self._seconds, self._num_steps, self._num_tokens = {}, 0, 0
        return taken

    def _lap(self) -> None:
        self._laps.append((self._open[-1], self._marks.now()))

    def _read(self) -> None:
        while self._unread and self._marks.is_behind(self._unread[0][0][-1][1]):
            laps, num_tokens = self._unread.pop(0)
            self._num_steps += 1
            self._num_tokens += num_tokens
            for (_, before), (part, mark) in itertools.pairwise(laps):
                self._seconds[part] = self._seconds.get(part, 0.0) + self._marks.between(before, mark)
            for _, mark in laps:
                self._marks.give_back(mark)


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """A part of the step that is going on; nothing where none is, as in evaluation."""
    clock = _running
    if clock is None:
        yield
        return
    clock.enter(part)
    try:
        yield
    finally:
        clock.leave()


class _TimedWork:
    """A collective that goes on meanwhile: to wait for it is communication."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with timed(COMMUNICATION):
            return self._work.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def time_collectives() -> None:
    """Have the collectives of DeepSpeed's engines timed, which are within their backward and step."""
    backend: Any = comm.cdb
    if backend is None or hasattr(backend, "ted_ds_times"):
        return
    backend.ted_ds_times = True
    for name in COLLECTIVES:
        if hasattr(backend, name):  # versions differ
            setattr(backend, name, _timed(getattr(backend, name)))


def time_waits(owner: Any, names: Sequence[str]) -> None:
    """Have functions of a module or a class timed as communication, within steps."""
    for name in names:
        plain = getattr(owner, name)
        if not hasattr(plain, "ted_ds_times"):
            setattr(owner, name, _timed(plain))


def _timed(plain: Callable[..., Any]) -> Callable[..., Any]:
    """As it was outside of steps; within one, communication, and so is the wait for what goes on meanwhile."""

    @functools.wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        if _running is None:
            return plain(*arguments, **named)
        with timed(COMMUNICATION):
            work = plain(*arguments, **named)
        return _TimedWork(work) if hasattr(work, "wait") else work

    call.__dict__["ted_ds_times"] = True
    return call
