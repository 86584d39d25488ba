"""When things happen in a training phase: step, log, skip, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ted_ds.data.loader import Batch
from ted_ds.errors import DataError, NumericsError
from ted_ds.runtime.engine import DataExhausted, Objective, TrainableEngine


def train(
    engine: TrainableEngine,
    batches: Iterator[Sequence[Batch]],
    objective: Objective,
    *,
    max_steps: int,
    log_every_steps: int,
    max_consecutive_skips: int,
    save: Callable[[], Path],
    log: Callable[[int, Mapping[str, float]], None],
    say: Callable[[str], None],
) -> float:
    """Run ``max_steps`` optimizer steps and report at every ``log_every_steps``-th and the last.

    Where the data ends before, so does the phase, with what it has.

    Args:
        engine: What trains.
        batches: This rank's microbatches of each step.
        objective: What it trains for.
        max_steps: Optimizer steps, skipped ones included.
        log_every_steps: How often to report.
        max_consecutive_skips: How many steps in a row may be skipped for a number that is not finite.
        save: Keeps the state that the phase is left in where it cannot go on; returns where it is.
        log: Takes each report.
        say: Takes messages to the user.

    Returns:
        Tokens per second over all ranks, without the first logging interval when there are more (start-up).

    Raises:
        TedError: The data or the numbers went wrong, or there is no data for even one step; on every rank.
    """
    intervals: list[tuple[float, float]] = []
    started = time.monotonic()

    def report(step: int) -> None:
        nonlocal started
        values = engine.report(objective)
        intervals.append((values["train/tokens"], time.monotonic() - started))
        started = time.monotonic()
        try:
            log(step, {**values, "perf/tokens_per_s": intervals[-1][0] / intervals[-1][1]})
        except DataError as error:
            _stop_for_data(engine, save, step, error)

    last_taken, bad_in_a_row, reason = 0, 0, ""
    for step in range(1, max_steps + 1):
        try:
            skipped = engine.step(batches, objective)
        except DataExhausted:
            if step == 1:
                raise
            say(f"  data exhausted after step {step - 1} of {max_steps}")
            if last_taken < step - 1 and _is_lost(engine, last_taken):
                raise _cannot_go_on(engine, save, step - 1, last_taken, reason) from None
            if (step - 1) % log_every_steps:
                report(step - 1)
            break
        except DataError as error:
            _stop_for_data(engine, save, step - 1, error)
        if skipped is None:
            last_taken, bad_in_a_row = step, 0
        else:
            bad_in_a_row, reason = bad_in_a_row + (not skipped.is_scale_search), skipped.reason
            say(f"  step {step} skipped, {step - last_taken} in a row: {reason}")
            if bad_in_a_row > max_consecutive_skips or (step == max_steps and _is_lost(engine, last_taken)):
                raise _cannot_go_on(engine, save, step, last_taken, reason)
        if step % log_every_steps == 0 or step == max_steps:
            report(step)
    timed = intervals[1:] or intervals
    return sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed)


def _is_lost(engine: TrainableEngine, last_taken: int) -> bool:
    """Whether a phase whose last step was skipped has nothing to show. Every rank must call it."""
    return last_taken == 0 or not engine.weights_are_finite()


def _stop_for_data(engine: TrainableEngine, save: Callable[[], Path], step: int, error: DataError) -> NoReturn:
    """Raise the data's error, once the state after ``step`` is kept."""
    # what one rank alone raises, the others do not know of; a state without a step is none
    if not error.agreed or step == 0 or not engine.weights_are_finite():
        raise error
    stopped = DataError(f"{error}. The state after step {step} is in {save()}")
    stopped.agreed = True
    raise stopped from error


def _cannot_go_on(
    engine: TrainableEngine, save: Callable[[], Path], step: int, last_taken: int, reason: str
) -> NumericsError:
    if engine.weights_are_finite():
        left = f"the state after step {last_taken}, the last that was taken, is in {save()}"
    else:
        left = "the weights themselves are not finite and were not saved"
    error = NumericsError(
        f"{step - last_taken} steps in a row were skipped; step {step}: {reason}. {left}. Lower the learning "
        "rate, use precision bf16 or fp32, or look at these steps' data (ted-ds doctor)"
    )
    error.agreed = True  # the reason was gathered from all ranks
    return error
