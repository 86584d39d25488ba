"""When things happen in a training phase: the loop alone, with an engine whose steps are written down beforehand.

With real engines: ``tests/distributed/test_nonfinite.py``, ``test_end_of_data.py`` and ``tests/integration``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import DataError, NumericsError
from ted_ds.objectives.teacher_view import STUDENT_TASK, TEACHER_TASK
from ted_ds.phases.loop import Progress, Rhythm, train
from ted_ds.runtime.nonfinite import SkippedStep
from ted_ds.runtime.step_runner import DataExhausted
from tests.refusals import without_overrides

TAKEN = None
SKIPPED = SkippedStep("loss is inf", is_scale_search=False)
SEARCHED = SkippedStep("the loss scale is too high", is_scale_search=True)
TOKENS = 10


class Objective:
    """Notes the steps that it is to weigh terms for."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.watched: list[bool] = []

    def begin_step(self, step: int) -> None:
        self.begun.append(step)

    def watch(self, wanted: bool) -> None:
        self.watched.append(wanted)


class Engine:
    """Steps that end as they are told to; an error is raised."""

    def __init__(self, steps: Iterable[Any], *, finite: bool = True, gaps: Mapping[int, tuple[float, float]]) -> None:
        self.steps, self.finite = iter(steps), finite
        self.tokens = self.num_steps = 0
        self.gaps = gaps

    def step(self, *_: Any) -> SkippedStep | None:
        outcome = next(self.steps)
        if isinstance(outcome, Exception):
            raise outcome
        self.tokens += TOKENS
        self.num_steps += 1
        return outcome

    def report(self, _: Any) -> dict[str, float]:
        tokens, self.tokens = self.tokens, 0
        return {"train/tokens": float(tokens), **self.seen(None)}

    def seen(self, _: Any) -> dict[str, float]:
        """Both task losses of the step, where they are given."""
        return dict(zip((STUDENT_TASK, TEACHER_TASK), self.gaps.get(self.num_steps, ()), strict=False))

    def weights_are_finite(self) -> bool:
        return self.finite


class Run:
    """What the loop asked for, in order."""

    def __init__(self, *, refuses: DataError | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.reports: list[Mapping[str, float]] = []
        self.begun: list[int] = []
        self.watched: list[bool] = []
        self._refuses = refuses

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.events.append(("log", step))
        self.reports.append(values)
        if self._refuses is not None:
            raise self._refuses

    def stepped(self, step: int, skipped: str | None) -> None:
        self.events.append(("stepped", (step, skipped)))

    def say(self, text: str) -> None:
        self.events.append(("say", text.strip()))

    def evaluate(self, progress: Progress) -> None:
        self.events.append(("evaluate", progress.step))

    def between_steps(self, progress: Progress) -> None:
        self.events.append(("between", progress.step))

    def save(self, progress: Progress) -> Path:
        self.events.append(("save", progress.step))
        return Path("checkpoints/kept")

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.events if name == kind]


def run(
    steps: Iterable[Any],
    *,
    progress: Progress | None = None,
    refuses: DataError | None = None,
    finite: bool = True,
    gaps: Mapping[int, tuple[float, float]] | None = None,
    **rhythm: Any,
) -> tuple[Run, Progress, float]:
    """The loop over these steps; whatever it raises carries the run as ``error.run``."""
    settings = {
        "max_steps": 7,
        "log_every_steps": 3,
        "evaluate_every_steps": None,
        "evaluate_last": False,
        "max_consecutive_skips": 1,
    }
    progress, surroundings = progress or Progress(), Run(refuses=refuses)
    engine: Any = Engine(steps, finite=finite, gaps=gaps or {})
    objective: Any = Objective()
    surroundings.begun, surroundings.watched = objective.begun, objective.watched
    try:
        speed = train(
            engine, iter(()), objective, surroundings, progress=progress, rhythm=Rhythm(**{**settings, **rhythm})
        )
    except Exception as error:
        error.run = surroundings  # type: ignore[attr-defined]
        raise
    return surroundings, progress, speed


def test_reports_come_at_every_so_many_steps_and_at_the_last() -> None:
    done, progress, _ = run(itertools.repeat(TAKEN))
    assert done.of("log") == [3, 6, 7]
    assert [report["train/tokens"] for report in done.reports] == [30, 30, 10]
    assert [report["train/total_tokens"] for report in done.reports] == [30, 60, 70]
    assert done.of("between") == [*range(7)]
    assert done.of("evaluate") == []
    assert (progress.step, progress.last_taken, progress.reported, progress.num_tokens) == (7, 7, 7, 70)
    assert done.begun == [*range(7)]


def test_the_first_step_and_those_of_reports_are_looked_at() -> None:
    done, *_ = run(itertools.repeat(TAKEN))
    assert done.watched == [True, False, True, False, False, True, True]
    done, *_ = run(itertools.repeat(TAKEN), watched=False)
    assert not any(done.watched)


@pytest.mark.parametrize("every", [1, 3])
def test_the_gap_is_held_against_that_of_the_first_step(every: int) -> None:
    gaps = {1: (2.0, 1.0), 3: (1.75, 1.25), 6: (0.5, 0.75), 7: (3.0, 1.0)}
    done, progress, _ = run(itertools.repeat(TAKEN), gaps=gaps, log_every_steps=every)
    closed = [report["gap/closed"] for report in done.reports if "gap/closed" in report]
    assert closed == [*([0.0] if every == 1 else []), 0.5, 1.25, -1.0]
    assert progress.gap_at_start == 1.0
    # a run that goes on has it, too
    later = Progress(step=5, last_taken=5, gap_at_start=4.0)
    done, *_ = run(itertools.repeat(TAKEN), gaps={1: (1.5, 0.5)}, progress=later)
    assert [report.get("gap/closed") for report in done.reports] == [0.75, None]


@pytest.mark.parametrize("start", [(1.0, 1.5), None])
def test_without_a_gap_at_the_start_no_share_of_it_is_said(start: tuple[float, float] | None) -> None:
    gaps = {3: (1.0, 0.5)} | ({} if start is None else {1: start})
    done, *_ = run(itertools.repeat(TAKEN), gaps=gaps)
    assert done.reports[0][STUDENT_TASK] == 1.0
    assert all("gap/closed" not in report for report in done.reports)


@pytest.mark.parametrize(
    ("every", "last", "expected"), [(2, False, [2, 4, 6]), (2, True, [2, 4, 6, 7]), (None, True, [7]), (7, True, [7])]
)
def test_held_out_data_is_scored_at_every_so_many_steps_and_once_at_the_last(
    every: int | None, last: bool, expected: list[int]
) -> None:
    done, progress, _ = run(itertools.repeat(TAKEN), evaluate_every_steps=every, evaluate_last=last)
    assert done.of("evaluate") == expected
    assert progress.evaluated == expected[-1]


@pytest.mark.parametrize(("evaluated", "expected"), [(2, [4, 6]), (4, [6])])
def test_a_score_that_a_stop_came_before_is_made_up_for(evaluated: int, expected: list[int]) -> None:
    progress = Progress(step=4, last_taken=4, evaluated=evaluated)
    done, _, _ = run(itertools.repeat(TAKEN), progress=progress, evaluate_every_steps=2)
    assert done.of("evaluate") == expected
    assert done.events[0] == (("evaluate", 4) if evaluated == 2 else ("between", 4))


def test_nothing_is_left_to_do() -> None:
    done, _, speed = run((), progress=Progress(step=7, last_taken=7, evaluated=7), evaluate_last=True)
    assert (done.events, speed) == ([], 0.0)


def test_speed_leaves_out_the_interval_that_starts_up() -> None:
    def slow_at_first() -> Iterable[None]:
        time.sleep(0.3)
        while True:
            yield TAKEN

    _, _, speed = run(slow_at_first())
    assert speed > 70 / 0.3  # whose time all of them would share
    _, _, alone = run(slow_at_first(), max_steps=3)
    assert 0 < alone < 100


def test_where_data_ends_the_phase_ends_with_what_it_has() -> None:
    done, progress, _ = run([*[TAKEN] * 4, DataExhausted("over")], evaluate_last=True)
    assert done.of("log") == [3, 4]
    assert done.of("say") == ["data exhausted after step 4 of 7"]
    assert done.of("evaluate") == [4]
    assert progress.step == 4
    at_a_report, _, _ = run([*[TAKEN] * 3, DataExhausted("over")])
    assert at_a_report.of("log") == [3]


def test_data_for_no_step_at_all_is_an_error() -> None:
    with pytest.raises(DataExhausted, match="over"):
        run([DataExhausted("over")])


def test_data_that_ends_behind_a_skipped_step_is_fine_where_the_weights_are() -> None:
    done, progress, _ = run([TAKEN, SKIPPED, DataExhausted("over")], max_consecutive_skips=3)
    assert (progress.step, progress.last_taken, done.of("log")) == (2, 1, [2])
    for steps, finite in (([SKIPPED], True), ([TAKEN, SKIPPED], False)):
        with pytest.raises(NumericsError, match="skipped 1 step in a row"):
            run([*steps, DataExhausted("over")], max_consecutive_skips=3, finite=finite)
    run([TAKEN, TAKEN, DataExhausted("over")], finite=False)  # the last one was taken: its numbers were looked at


def test_a_skip_is_told_and_too_many_in_a_row_end_the_phase() -> None:
    done, progress, _ = run([SKIPPED, TAKEN, SKIPPED, TAKEN, SKIPPED, TAKEN, TAKEN])
    assert done.of("say") == [f"step {step} skipped, 1 in a row: loss is inf" for step in (1, 3, 5)]
    assert progress.bad_in_a_row == 0
    with pytest.raises(NumericsError) as caught:
        run([TAKEN, SKIPPED, SKIPPED, SKIPPED])
    assert without_overrides(str(caught.value)).startswith(
        "skipped 2 steps in a row; step 3: loss is inf. the state after step 1, the last that was taken, is in "
        "checkpoints/kept. "
    )
    assert caught.value.run.of("save") == [3]  # type: ignore[attr-defined]
    with pytest.raises(NumericsError, match="the weights themselves are not finite and were not saved"):
        run([TAKEN, SKIPPED, SKIPPED], finite=False)


def test_a_search_for_the_loss_scale_is_no_bad_step() -> None:
    done, progress, _ = run([*[SEARCHED] * 4, TAKEN, SEARCHED, TAKEN])
    assert (progress.bad_in_a_row, progress.last_taken) == (0, 7)
    assert done.of("say")[3] == "step 4 skipped, 4 in a row: the loss scale is too high"
    with pytest.raises(NumericsError, match="4 steps in a row"):
        run([SEARCHED, SKIPPED, SEARCHED, SKIPPED])


def test_a_last_step_that_is_skipped_is_an_error_where_nothing_is_to_show() -> None:
    run([*[TAKEN] * 6, SKIPPED])
    with pytest.raises(NumericsError, match="the weights themselves"):
        run([*[TAKEN] * 6, SKIPPED], finite=False)
    with pytest.raises(NumericsError, match="the state after step 0"):
        run([SKIPPED], max_steps=1)


def agreed(text: str) -> DataError:
    error = DataError(text)
    error.agreed = True
    return error


@pytest.mark.parametrize("where", ["step", "report"])
def test_an_error_of_the_data_keeps_the_state_where_all_ranks_know_of_it(where: str) -> None:
    def attempt(error: DataError, num_taken: int = 3, *, finite: bool = True) -> Any:
        steps = [*[TAKEN] * num_taken, *([error] if where == "step" else [TAKEN] * 9)]
        every = 5 if where == "step" else num_taken
        with pytest.raises(DataError) as caught:
            run(steps, refuses=error if where == "report" else None, log_every_steps=every, finite=finite)
        return caught.value

    kept = attempt(agreed("a bad row"))
    assert str(kept) == "a bad row. The state after step 3 is in checkpoints/kept"
    assert kept.agreed
    assert kept.run.of("save") == [3]
    for error in (attempt(DataError("a bad row")), attempt(agreed("a bad row"), finite=False)):
        assert (str(error), error.run.of("save")) == ("a bad row", [])


def test_an_error_before_the_first_step_has_no_state_to_keep() -> None:
    with pytest.raises(DataError) as caught:
        run([agreed("a bad row")])
    assert (without_overrides(str(caught.value)), caught.value.run.of("save")) == ("a bad row", [])  # type: ignore[attr-defined]
