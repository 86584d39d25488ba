"""``ted-ds doctor --replay``: one step's gradients over and over, to find the rank whose machine computes wrongly.

See :mod:`ted_ds.runtime.replay`. A machine that is wrong in the same way each time is not found.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import StageTwo
from ted_ds.data.loader import Batch
from ted_ds.output.screen import duration
from ted_ds.runtime.zero_runner import ZeroRunner

SAY_EVERY_S = 10.0


def repeat_step(
    build: Assembly, engine: ZeroRunner, stage: StageTwo, batches: Iterator[Sequence[Batch]], times: int
) -> None:
    """Repeat a step, and say how it goes. Every rank must call it.

    Raises:
        DeviceFaultError: A rank came to other bits; on every rank.
        StopNow: A rank was asked to stop; on every rank.
        TedError: The data failed on some rank; raised on all of them.
    """
    started = said = time.monotonic()

    def between(number: int) -> None:
        nonlocal said
        build.stop_if_asked()
        now = time.monotonic()
        if now - said >= SAY_EVERY_S or number == 1:
            said = now
            left = (now - started) / number * (times - number)
            build.screen.say(f"  repetition {number} of {times}: the same bits on all ranks, {duration(left)} left")

    engine.repeat(batches, stage.objective, times, between)
    world = build.world
    hosts = ", ".join(dict.fromkeys(world.hosts))
    took = duration(time.monotonic() - started)
    build.screen.say(
        f"{times} repetitions of a step's gradients are the same bits on all {world.size} ranks ({hosts}), {took}"
    )
