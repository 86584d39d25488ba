"""When things happen in a training phase: step, log, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ted_ds.data.loader import Batch
from ted_ds.runtime.engine import Objective, TrainableEngine


def train(
    engine: TrainableEngine,
    batches: Iterator[Sequence[Batch]],
    objective: Objective,
    *,
    max_steps: int,
    log_every_steps: int,
    log: Callable[[int, Mapping[str, float]], None],
) -> float:
    """Run ``max_steps`` optimizer steps and report at every ``log_every_steps``-th and the last.

    Returns:
        Tokens per second over all ranks, without the first logging interval when there are more (start-up).

    Raises:
        TedError: The data or the numbers went wrong; on every rank.
    """
    started = time.monotonic()
    timed_tokens, timed_s = 0.0, 0.0
    for step in range(1, max_steps + 1):
        engine.step(batches, objective)
        if step % log_every_steps and step != max_steps:
            continue
        report = engine.report(objective)
        now = time.monotonic()
        report["perf/tokens_per_s"] = report["train/tokens"] / (now - started)
        if step > log_every_steps or step == max_steps:
            timed_tokens += report["train/tokens"]
            timed_s += now - started
        started = now
        log(step, report)
    return timed_tokens / timed_s
