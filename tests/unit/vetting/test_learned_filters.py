"""Whether learned filters beat a guess, and whether the doctor looks at them or at fresh ones in their place."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ted_ds.tasks.guess import Guess
from ted_ds.vetting.doctor import has_filters
from ted_ds.vetting.filters import Baseline, judge_filters
from ted_ds.vetting.verdict import Status, Verdict


@pytest.mark.parametrize(("status", "expected"), [("pass", True), ("warn", True), ("fail", False), ("skip", False)])
def test_what_is_missing_or_damaged_on_one_side_is_so_on_no_other(status: Status, expected: bool) -> None:
    verdicts = [Verdict("student weights", "fail", ""), Verdict("filters of teacher", status, "")]
    assert has_filters("teacher", verdicts) is expected
    assert has_filters("student", verdicts)


GUESS = Guess(10.0, "one of 22,026")
MANY = 40


def filters(**losses: float) -> dict[str, dict[str, float]]:
    return {name: {"loss": loss} for name, loss in losses.items()}


def judge(scores: dict[str, dict[str, float]], *, guess: Guess = GUESS, num_examples: int = MANY, **more: Any) -> Any:
    most_frequent = more.pop("most_frequent", None)
    verdict = judge_filters("teacher", scores, Baseline(guess, num_examples, most_frequent), **more)
    assert verdict.check == "filters of teacher"
    return verdict.status, verdict.detail


def test_filters_that_know_something_pass_and_each_loss_is_shown() -> None:
    shown = "held-out loss layer_01 9.5, layer_02 3; guessing one of 22,026 10"
    assert judge(filters(layer_01=9.5, layer_02=3.0)) == ("pass", shown)


def test_what_solved_filters_began_with_is_shown() -> None:
    status, detail = judge(filters(layer_01=9.5), before=filters(layer_01=9.75), are_solved=True)
    assert (status, detail) == ("pass", "held-out loss layer_01 9.75 -> 9.5; guessing one of 22,026 10")


def test_filters_below_guessing_fail_and_are_named() -> None:
    status, detail = judge(filters(layer_01=10.2, layer_02=3.0, layer_03=11.0))
    assert status == "fail"
    assert detail == (
        "held-out loss layer_01 10.2, layer_02 3, layer_03 11; guessing one of 22,026 10: layer_01, layer_03 below "
        "guessing; train them for longer, or solve them (filters.initialisation: ridge)."
    )


def test_solved_ones_need_not_be_told_to_be_solved() -> None:
    status, detail = judge(filters(layer_01=10.2), are_solved=True)
    assert status == "fail"
    assert detail.endswith("layer_01 below guessing; train them for longer.")


@pytest.mark.parametrize(("loss", "status"), [(9.999, "pass"), (10.0, "warn"), (10.1, "warn"), (10.11, "fail")])
def test_one_that_is_as_good_as_a_guess_is_looked_at(loss: float, status: Status) -> None:
    assert judge(filters(layer_01=loss))[0] == status


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_on_however_few_examples(loss: float) -> None:
    assert judge(filters(layer_01=loss), num_examples=1)[0] == "fail"


def test_with_few_examples_nothing_is_refused() -> None:
    status, detail = judge(filters(layer_01=30.0), num_examples=31)
    assert status == "warn"
    assert detail.endswith("layer_01 no better than guessing")
    assert judge(filters(layer_01=30.0), num_examples=32)[0] == "fail"


@pytest.mark.parametrize(("accuracy", "status"), [(0.57, "fail"), (0.59, "warn")])
def test_a_classifier_that_is_too_sure_of_itself_is_not_refused(accuracy: float, status: Status) -> None:
    scores = {"layer_01": {"loss": 12.0, "accuracy": accuracy}}
    assert judge(scores, most_frequent=0.5, num_examples=36)[0] == status


def test_where_targets_do_not_vary_there_is_nothing_to_guess() -> None:
    assert judge(filters(layer_01=1.0), guess=Guess(0.0, "the mean"))[0] == "skip"
