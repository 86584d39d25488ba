"""Verdicts: what the data allow to say, and no more."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from ted_ds.numerics.paired_draws import Difference, student_quantile
from ted_ds.output.study_tables import StudyTable, in_markdown
from ted_ds.output.study_words import Measure, needed, verdict

POINTS, PERPLEXITY = Measure("accuracy", True), Measure("perplexity", False)


def found(estimate: float, reach: float, *, examples: float = 0.01, seeds: float = 0.0) -> Difference:
    return Difference(estimate, estimate - reach, estimate + reach, 0.5, examples, seeds)


def said(difference: Difference, p: float, measure: Measure = POINTS, seeds: int = 3) -> str:
    return verdict("ted", "sft", difference, p, measure, (1000, seeds))


def test_a_difference_beyond_chance_is_told_with_its_interval() -> None:
    assert said(found(0.019, 0.012), 0.01) == "ted is better than sft by 1.9 points [+0.7, +3.1]"
    assert said(found(-0.019, 0.012), 0.01) == "ted is worse than sft by 1.9 points [-3.1, -0.7]"


def test_of_a_loss_less_is_better() -> None:
    assert said(found(-3.25, 1.0), 0.01, PERPLEXITY) == "ted is better than sft by 3.25 perplexity [+2.25, +4.25]"


def test_what_holms_correction_takes_back_is_said() -> None:
    assert said(found(0.019, 0.012), 0.08) == (
        "ted may be better than sft by 1.9 points [+0.7, +3.1], but of the arms that were compared one may look so by "
        "chance (p 0.08 after Holm)"
    )


def test_no_difference_comes_with_what_could_have_been_seen() -> None:
    assert said(found(0.003, 0.012, examples=0.006), 0.6) == (
        "no difference between ted and sft can be seen: +0.3 points [-0.9, +1.5]; with 1,000 examples and 3 seeds four "
        "studies of five tell one of 1.7, and for one of the measured size they need about 33,000 examples"
    )


def test_arms_that_came_out_the_same_are_told_so() -> None:
    assert said(found(0.0, 0.0, examples=0.0), 1.0) == (
        "none of the 1,000 examples tells ted from sft: both came out the same"
    )


def test_of_one_seed_nothing_is_said_about_others() -> None:
    words = said(found(0.019, 0.012), 0.01, seeds=1)
    assert words.startswith("ted may be better than sft by 1.9 points")
    assert words.endswith("; of one seed, and another may say otherwise")


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        # the interval ends 2 errors from its middle: half an error was measured, 16 times the examples make it 2, and
        # with 2.04 times as many as those it is found four times of five
        (found(0.005, 0.02, examples=0.01), "about 33,000 examples"),
        # of the measured seeds the interval ends 4.3 errors from its middle, of 8 at 2.4 and of 7 at 2.4
        (found(0.02, 4.303 * 0.009, examples=0.0, seeds=0.009), "about 8 seeds"),
        (found(0.005, 0.0285, examples=0.01, seeds=0.01), "about 67,000 examples and 200 seeds"),
        (found(0.0, 0.02), "more than 100 times as many"),
        (found(0.0005, 0.02), "more than 100 times as many"),
    ],
)
def test_what_would_be_needed_is_examples_or_seeds_or_both(difference: Difference, words: str) -> None:
    assert needed(difference, 1000, 3) == words


@pytest.mark.parametrize("measured", [2, 3, 5])
def test_so_many_seeds_would_indeed_do(measured: int) -> None:
    effect, of_one = 0.02, 0.0156
    error = of_one / math.sqrt(measured)
    half = student_quantile(0.975, measured - 1) * error
    said = re.fullmatch(r"about (\d+) seeds", needed(found(effect, half, examples=0.0, seeds=error), 1000, measured))
    assert said is not None
    number = int(said[1])
    for seeds, enough in ((number, True), (number - 2, False)):
        drawn = np.random.default_rng(0).normal(effect, of_one, (50_000, seeds))
        of_each = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(seeds))
        assert ((of_each > student_quantile(0.975, seeds - 1)).mean() >= 0.8) == enough


def test_students_quantile_is_that_of_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042}
    for freedom, expected in table.items():
        assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=2e-3)


def test_so_many_examples_would_indeed_do() -> None:
    of_examples, of_seeds, effect = 0.012, 0.002, 0.01
    half = 1.96 * math.hypot(of_examples, of_seeds)
    said = re.fullmatch(
        r"about ([\d,]+) examples", needed(found(effect, half, examples=of_examples, seeds=of_seeds), 1000, 3)
    )
    assert said is not None
    error = math.hypot(of_examples * math.sqrt(1000 / int(said[1].replace(",", ""))), of_seeds)
    told = np.random.default_rng(0).normal(effect, error, 100_000) > 1.96 * error
    assert told.mean() == pytest.approx(0.8, abs=0.01)


def test_markdown_has_title_verdicts_and_tables() -> None:
    table = StudyTable("scores", ("arm", "mean"), [("a|b", "0.5")])
    assert in_markdown("tiny", ["Two arms."], [table], ["a is better"]) == (
        "## tiny\n\nTwo arms.\n\n- a is better\n\nscores:\n\n| arm | mean |\n|---|---|\n| a\\|b | 0.5 |\n"
    )
