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
    skipped_in_a_row = 0
    for step in range(1, max_steps + 1):
        reason = engine.step(batches, objective)
        skipped_in_a_row = skipped_in_a_row + 1 if reason else 0
        if reason:
            say(f"  step {step} skipped, {skipped_in_a_row} in a row: {reason}")
        if reason and skipped_in_a_row > max_consecutive_skips:
            raise _too_many(engine, last_good, step - skipped_in_a_row, skipped_in_a_row, reason)
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


def _too_many(engine: TrainableEngine, last_good: Path, good_step: int, skipped: int, reason: str) -> NumericsError:
    if engine.weights_are_finite():
        engine.save(last_good)
        left = f"the state after step {good_step}, the last that was taken, is in {last_good}"
    else:
        left = "the weights themselves are not finite and were not saved"
    error = NumericsError(
        f"{skipped} steps in a row were skipped; step {good_step + skipped}: {reason}. {left}. Lower the learning "
        "rate, use precision bf16 or fp32, or look at these steps' data (ted-ds doctor)"
    )
    error.agreed = True  # the reason was gathered from all ranks
    return error
