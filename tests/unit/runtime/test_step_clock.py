"""The clock of steps: its parts, and that they sum up to what a step took."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from ted_ds.output.step_parts import PARTS
from ted_ds.runtime import step_clock
from ted_ds.runtime.step_clock import StepClock, timed

CPU = torch.device("cpu")


def seconds_of(clock: StepClock) -> dict[str, float]:
    return {name: value for name, value in clock.take().items() if name not in ("steps", "tokens")}


def test_time_belongs_to_the_innermost_part() -> None:
    clock = StepClock(CPU)
    started = time.perf_counter()
    with clock.step(lambda: 5):
        with timed("forward"):
            time.sleep(0.02)
            with timed("teacher"):
                time.sleep(0.04)
                with timed("losses"):
                    time.sleep(0.01)
        time.sleep(0.01)
    took = time.perf_counter() - started
    taken = clock.take()
    assert (taken["steps"], taken["tokens"]) == (1, 5)
    assert taken["teacher"] >= 0.04
    assert 0.02 <= taken["forward"] < taken["teacher"]
    assert min(taken["losses"], taken["other"]) >= 0.01
    parts = sum(taken[part] for part in PARTS if part in taken)
    assert parts == pytest.approx(took, rel=0.02)
    assert clock.take() == {"steps": 0, "tokens": 0}, "each step is told once"


def test_a_step_that_fails_does_not_count_and_nothing_counts_outside_of_one() -> None:
    clock = StepClock(CPU)
    with pytest.raises(ValueError, match="broken"), clock.step(lambda: 5), timed("forward"):
        raise ValueError("broken")
    with timed("forward"):
        pass
    assert clock.take() == {"steps": 0, "tokens": 0}
    with clock.step(lambda: 1), timed("losses"):
        pass
    assert {*seconds_of(clock)} == {"losses", "other"}


def test_what_is_timed_stays_what_it_was() -> None:
    @timed("losses")
    def twice(number: int) -> int:
        return 2 * number

    assert twice(3) == 6
    with StepClock(CPU).step(lambda: 1):
        assert twice(3) == twice(3) == 6


class Device:
    """Marks of a device that is behind: each is reached when it is told to be."""

    def __init__(self) -> None:
        self.made, self.reached, self.given_back = 0, 0, []

    def now(self) -> int:
        self.made += 1
        return self.made

    def is_behind(self, mark: int) -> bool:
        return mark <= self.reached

    def between(self, one: int, other: int) -> float:
        assert other <= self.reached, "nobody reads a mark before it is reached"
        return float(other - one)

    def give_back(self, mark: int) -> None:
        self.given_back.append(mark)


def test_steps_that_a_device_has_not_done_are_read_later() -> None:
    clock, device = StepClock(CPU), Device()
    clock._marks = device
    for _ in range(2):
        with clock.step(lambda: 7), timed("forward"):
            pass
    assert clock.take() == {"steps": 0, "tokens": 0}
    device.reached = 4
    assert clock.take() == {"steps": 1, "tokens": 7, "other": 2.0, "forward": 1.0}
    device.reached = device.made
    assert clock.take() == {"steps": 1, "tokens": 7, "other": 2.0, "forward": 1.0}
    assert device.given_back == [*range(1, device.made + 1)]


def test_collectives_of_engines_are_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        done = "done"

        def wait(self) -> str:
            time.sleep(0.01)
            return "waited"

    class Backend:
        def all_reduce(self, tensor: Any, *, async_op: bool) -> Any:
            return Work() if async_op else tensor

        def __getattr__(self, name: str) -> Any:
            if name.startswith("ted_ds"):
                raise AttributeError(name)
            return lambda *_: None

    backend = Backend()
    monkeypatch.setattr(step_clock.comm, "cdb", backend)
    clock = StepClock(CPU)
    StepClock(CPU)  # the second engine of a process wraps nothing twice
    assert isinstance(backend.all_reduce(1, async_op=True), Work), "outside of a step it is left alone"
    with clock.step(lambda: 1), timed("backward"):
        assert backend.all_reduce(1, async_op=False) == 1
        work = backend.all_reduce(1, async_op=True)
        assert (work.wait(), work.done) == ("waited", "done")
    taken = seconds_of(clock)
    assert taken["communication"] >= 0.01 > taken["backward"]


def test_waits_for_other_streams_are_communication_and_what_they_were_outside_of_a_step() -> None:
    class Stream:
        def wait_stream(self, other: str) -> str:
            time.sleep(0.01)
            return f"waited for {other}"

    for _ in range(2):  # a second engine times nothing twice
        step_clock.time_waits(Stream, ("wait_stream",))
    assert Stream().wait_stream("one") == "waited for one"
    clock = StepClock(CPU)
    with clock.step(lambda: 1), timed("backward"):
        assert Stream().wait_stream(other="another") == "waited for another"
    taken = seconds_of(clock)
    assert 0.01 <= taken["communication"] < 0.02
    assert taken["backward"] < 0.01


def test_what_engines_wait_by_on_a_gpu_is_there_to_be_timed() -> None:
    for owner, names in step_clock.WAITS:
        assert all(callable(getattr(owner, name)) for name in names)
