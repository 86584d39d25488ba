"""Contenders timed in turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after a round that does not count.

    Args:
        contenders: By name. Each waits for its device.
        rounds: How many count.
        seconds: Within a round a contender is repeated until so much time has passed; the mean counts.
        clock: Whose seconds these are: ``time.process_time`` are those that processors spent on this process.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    for number in range(rounds + 1):
        for name, work in contenders.items():
            count, started = 0, clock()
            while count == 0 or clock() - started < seconds:
                work()
                synchronise()
                count += 1
            if number:
                taken[name].append((clock() - started) / count)
    return taken


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(taken: Mapping[str, list[float]], name: str, *others: str) -> float:
    """The median over rounds of a contender's time beside the sum of others' in the same round."""
    return median(
        one / sum(beside) for one, *beside in zip(taken[name], *(taken[other] for other in others), strict=True)
    )
