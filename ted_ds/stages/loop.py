"""When things happen in a training phase: step, log, skip, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ted_ds.data.loader import Batch
from ted_ds.errors import NumericsError
from ted_ds.runtime.engine import Objective, TrainableEngine


def train(
    engine: TrainableEngine,
    batches: Iterator[Sequence[Batch]],
    objective: Objective,
    *,
    max_steps: int,
    log_every_steps: int,
    max_consecutive_skips: int,
    last_good: Path,
    log: Callable[[int, Mapping[str, float]], None],
    say: Callable[[str], None],
) -> float:
    """Run ``max_steps`` optimizer steps and report at every ``log_every_steps``-th and the last.

    Args:
        engine: What trains.
        batches: This rank's microbatches of each step.
        objective: What it trains for.
        max_steps: Optimizer steps, skipped ones included.
        log_every_steps: How often to report.
        max_consecutive_skips: How many steps in a row may be skipped for a number that is not finite.
        last_good: Where to put the last good state when there are more.
        log: Takes each report.
        say: Takes messages to the user.

    Returns:
        Tokens per second over all ranks, without the first logging interval when there are more (start-up).

    Raises:
        TedError: The data or the numbers went wrong; on every rank.
    """
    started = time.monotonic()
    timed_tokens, timed_s = 0.0, 0.0
    last_taken, bad_in_a_row = 0, 0
    for step in range(1, max_steps + 1):
        skipped = engine.step(batches, objective)
        if skipped is None:
            last_taken, bad_in_a_row = step, 0
        else:
            bad_in_a_row += not skipped.is_scale_search
            say(f"  step {step} skipped, {step - last_taken} in a row: {skipped.reason}")
            at_the_end = step == max_steps and (last_taken == 0 or not engine.weights_are_finite())
            if bad_in_a_row > max_consecutive_skips or at_the_end:
                raise _cannot_go_on(engine, last_good, step, last_taken, skipped.reason)
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


def _cannot_go_on(engine: TrainableEngine, last_good: Path, step: int, last_taken: int, reason: str) -> NumericsError:
    if engine.weights_are_finite():
        engine.save(last_good)
        left = f"the state after step {last_taken}, the last that was taken, is in {last_good}"
    else:
        left = "the weights themselves are not finite and were not saved"
    error = NumericsError(
        f"{step - last_taken} steps in a row were skipped; step {step}: {reason}. {left}. Lower the learning "
        "rate, use precision bf16 or fp32, or look at these steps' data (ted-ds doctor)"
    )
    error.agreed = True  # the reason was gathered from all ranks
    return error
