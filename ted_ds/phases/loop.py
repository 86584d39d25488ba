"""When things happen in a training phase: step, log, evaluate, save, skip, stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from ted_ds.data.loader import Batch
from ted_ds.errors import DataError, NumericsError, counted
from ted_ds.objectives.teacher_view import GAP_CLOSED, STUDENT_TASK, TEACHER_TASK
from ted_ds.runtime.step_runner import DataExhausted, Objective, StepRunner


@dataclass
class Progress:
    """How far a phase is: what the loop itself has to know to go on."""

    step: int = 0
    """Steps behind it, skipped ones included."""
    last_taken: int = 0
    """The last that was not skipped."""
    bad_in_a_row: int = 0
    """Steps skipped since, but for those that only searched fp16's loss scale."""
    reported: int = 0
    """The last step after which there was a report."""
    evaluated: int = 0
    """The last step after which the held-out data was scored."""
    num_tokens: int = 0
    """Learned from up to the last report, over all ranks."""
    report: dict[str, float] = field(default_factory=dict)
    """The last one."""
    gap_at_start: float | None = None
    """By how much the student's task loss was above its teacher's in the first step; None where that is not known."""


@dataclass(frozen=True)
class Rhythm:
    """How far, and what happens how often."""

    max_steps: int
    """Optimizer steps, skipped ones included."""
    log_every_steps: int
    """How often to report."""
    evaluate_every_steps: int | None
    """How often to score the held-out data; None for not at all."""
    evaluate_last: bool
    """Whether to do so after the last step in any case."""
    max_consecutive_skips: int
    """How many steps in a row may be skipped for a number that is not finite."""
    watched: bool = True
    """Whether the steps of reports, and the first, are looked at for more than the losses."""


class Surroundings(Protocol):
    """What the loop asks of the run around it; every rank must call all of it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a report."""
        ...

    def stepped(self, step: int, skipped: str | None) -> None:
        """Take note of a step that is behind, and of why it was skipped."""
        ...

    def say(self, text: str) -> None:
        """Take a message to the user."""
        ...

    def evaluate(self, progress: Progress) -> None:
        """Score the held-out data."""
        ...

    def between_steps(self, progress: Progress) -> None:
        """Save, or stop, if that is due."""
        ...

    def save(self, progress: Progress) -> Path:
        """Keep the state the phase is left in where it cannot go on; returns where it is."""
        ...


def train(
    engine: StepRunner,
    batches: Iterator[Sequence[Batch]],
    objective: Objective,
    surroundings: Surroundings,
    *,
    progress: Progress,
    rhythm: Rhythm,
) -> float:
    """Run optimizer steps up to ``rhythm.max_steps``, and report at every ``log_every_steps``-th and the last.

    Where the data ends before, so does the phase, with what it has.

    Args:
        engine: What trains.
        batches: This rank's microbatches of each step, after those behind ``progress``.
        objective: What it trains for.
        surroundings: Takes reports, saves, and stops.
        progress: Where to begin; kept up to date.
        rhythm: How far, and what happens how often.

    Returns:
        Tokens per second over all ranks, without the first logging interval when there are more (start-up); 0 where
        nothing was left to do.

    Raises:
        TedError: The data or the numbers went wrong, or there is no data for even one step; on every rank.
    """
    max_steps, every = rhythm.max_steps, rhythm.evaluate_every_steps
    intervals: list[tuple[float, float]] = []
    started = time.monotonic()

    def report() -> None:
        nonlocal started
        values = engine.report(objective)
        intervals.append((values["train/tokens"], time.monotonic() - started))
        started = time.monotonic()
        progress.reported = progress.step
        progress.num_tokens += int(values["train/tokens"])
        values["train/total_tokens"] = progress.num_tokens
        values |= _gap(progress, values)
        progress.report = {**values, "perf/tokens_per_s": intervals[-1][0] / intervals[-1][1]}
        try:
            surroundings.log(progress.step, progress.report)
        except DataError as error:
            _stop_for_data(engine, surroundings, progress, error)

    def evaluate_if_due(last: int) -> None:
        due = every is not None and progress.step % every == 0
        if (due or (rhythm.evaluate_last and progress.step == last)) and 0 < progress.step != progress.evaluated:
            surroundings.evaluate(progress)
            progress.evaluated = progress.step

    evaluate_if_due(max_steps)  # a stop may have come before it
    reason = ""
    while progress.step < max_steps:
        surroundings.between_steps(progress)
        is_reported = (progress.step + 1) % rhythm.log_every_steps == 0 or progress.step + 1 == max_steps
        try:
            objective.begin_step(progress.step)
            objective.watch(rhythm.watched and (is_reported or progress.step == 0))
            skipped = engine.step(batches, objective)
        except DataExhausted:
            if progress.step == 0:
                raise
            surroundings.say(f"  data exhausted after step {progress.step} of {max_steps}")
            if progress.last_taken < progress.step and _is_lost(engine, progress):
                raise _cannot_go_on(engine, surroundings, progress, reason) from None
            if progress.reported < progress.step:
                report()
            evaluate_if_due(progress.step)
            break
        except DataError as error:
            _stop_for_data(engine, surroundings, progress, error)
        progress.step += 1
        if skipped is None:
            progress.last_taken, progress.bad_in_a_row = progress.step, 0
        else:
            progress.bad_in_a_row += not skipped.is_scale_search
            reason = skipped.reason
            in_a_row = progress.step - progress.last_taken
            surroundings.say(f"  step {progress.step} skipped, {in_a_row} in a row: {reason}")
            if progress.bad_in_a_row > rhythm.max_consecutive_skips or (
                progress.step == max_steps and _is_lost(engine, progress)
            ):
                raise _cannot_go_on(engine, surroundings, progress, reason)
        surroundings.stepped(progress.step, None if skipped is None else skipped.reason)
        if is_reported:
            report()
        elif rhythm.watched and progress.step == 1:
            _gap(progress, engine.seen(objective))
        evaluate_if_due(max_steps)
    timed = intervals[1:] or intervals
    return sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed) if timed else 0.0


def _gap(progress: Progress, values: Mapping[str, float]) -> dict[str, float]:
    """The share of the gap to the teacher's task loss that is closed since the first step, where there was one.

    Each gap is of both models' losses on the same labels, those of one step: it hangs less on the labels than a loss.
    """
    if STUDENT_TASK not in values:
        return {}
    gap = values[STUDENT_TASK] - values[TEACHER_TASK]
    if progress.step == 1:
        progress.gap_at_start = gap
    start = progress.gap_at_start
    return {GAP_CLOSED: 1 - gap / start} if start is not None and start > 0 else {}


def _is_lost(engine: StepRunner, progress: Progress) -> bool:
    """Whether a phase whose last step was skipped has nothing to show. Every rank must call it."""
    return progress.last_taken == 0 or not engine.weights_are_finite()


def _stop_for_data(engine: StepRunner, surroundings: Surroundings, progress: Progress, error: DataError) -> NoReturn:
    """Raise the data's error, once the state after the last step is kept."""
    # what one rank alone raises, the others do not know of; a state without a step is none
    if not error.agreed or progress.step == 0 or not engine.weights_are_finite():
        raise error
    stopped = DataError(f"{error}. The state after step {progress.step} is in {surroundings.save(progress)}")
    stopped.agreed = True
    raise stopped from error


def _cannot_go_on(engine: StepRunner, surroundings: Surroundings, progress: Progress, reason: str) -> NumericsError:
    if engine.weights_are_finite():
        place = surroundings.save(progress)
        left = f"the state after step {progress.last_taken}, the last that was taken, is in {place}"
    else:
        left = "the weights themselves are not finite and were not saved"
    error = NumericsError(
        f"skipped {counted(progress.step - progress.last_taken, 'step')} in a row; step {progress.step}: {reason}. "
        f"{left}. "
        "Look at these steps' data (ted-ds doctor), lower the learning rate, or use precision bf16 or fp32; with other "
        "settings the phase starts anew, once its checkpoints are removed. max_consecutive_skips may be raised to go on"
    )
    error.agreed = True  # the reason was gathered from all ranks
    return error
