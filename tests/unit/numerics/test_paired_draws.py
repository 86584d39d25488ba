"""Comparisons of runs: against brute force and SciPy, and how often they are wrong where there is nothing to see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from ted_ds.numerics.metric_sums import FORMS
from ted_ds.numerics.paired_draws import Draws, difference, draw, draws_of_examples, holm, share_of_gap

RATIO = FORMS["ratio"]


def outcomes(right: np.ndarray) -> list[list[np.ndarray]]:
    """Of ``[ways, seeds, examples]``, 1 for right ones."""
    return [[RATIO.expand([run, np.ones(len(run))]) for run in way] for way in right]


def drawn(right: np.ndarray, num_draws: int = 2000, seed: int = 0) -> Draws:
    return draw(outcomes(right), RATIO.value, draws_of_examples(right.shape[-1], num_draws, seed))


def some(ways: int = 2, seeds: int = 3, examples: int = 80, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    hard = generator.random(examples)
    skill = generator.normal(0.6, 0.05, (ways, seeds, 1))
    return (generator.random((ways, seeds, examples)) * 0.3 + 0.7 * hard < skill).astype(float)


def test_draws_of_examples_are_brute_force_on_the_same_draws() -> None:
    right = some(ways=3, seeds=2, examples=30)
    found = drawn(right, num_draws=50, seed=3)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=50)
    for row, count in enumerate(counts):
        picked = np.repeat(np.arange(30), count)
        by_hand = [np.mean([run[picked].mean() for run in way]) for way in right]
        assert found.by_examples[row] == pytest.approx(by_hand, rel=1e-12)
    assert found.means == pytest.approx(right.mean(axis=(1, 2)), rel=1e-12)
    assert found.scores == pytest.approx(right.mean(axis=2), rel=1e-12)


def test_of_one_seed_the_interval_is_scipys_paired_bootstrap() -> None:
    right = some(seeds=1, examples=400)
    found = difference(drawn(right, num_draws=20_000), 0, 1, confidence=0.95)

    def paired(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return one.mean(axis=axis) - other.mean(axis=axis)

    data = (right[0, 0], right[1, 0])
    settings = {"paired": True, "n_resamples": 20_000, "method": "percentile", "rng": np.random.default_rng(5)}
    theirs = stats.bootstrap(data, paired, confidence_level=0.95, **settings)
    error = found.error_of_examples
    assert found.estimate == pytest.approx(float(paired(*data)), rel=1e-12)
    # ends of 20,000 draws are off by 1/40 of a standard error, and differences of means of 400 go in steps of 1/400
    assert abs(found.low - theirs.confidence_interval.low) < 0.05 * error + 1 / 400
    assert abs(found.high - theirs.confidence_interval.high) < 0.05 * error + 1 / 400
    assert error == pytest.approx(theirs.standard_error, rel=0.03)
    assert found.error_of_seeds == 0


def test_without_chance_in_examples_the_interval_is_students_over_seeds() -> None:
    """Seeds that differ by whole test sets: all examples of a run are right, or all by the same share."""
    scores = np.array([[0.8, 0.7, 0.9, 0.75], [0.6, 0.65, 0.7, 0.5]])
    right = np.repeat(scores[:, :, None], 50, axis=2)
    found = difference(drawn(right, num_draws=100_000), 0, 1, confidence=0.95)
    theirs = stats.ttest_rel(*scores)
    interval = theirs.confidence_interval(0.95)
    width = interval.high - interval.low
    assert abs(found.low - interval.low) < 0.02 * width
    assert abs(found.high - interval.high) < 0.02 * width
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.1)
    assert found.error_of_seeds == pytest.approx(stats.sem(scores[0] - scores[1]), rel=1e-12)
    assert found.error_of_examples == pytest.approx(0, abs=1e-12)


def test_errors_of_seeds_agree_for_all_differences_at_once() -> None:
    right = some(ways=3, examples=40)
    found = drawn(right, num_draws=2000)
    of_two = drawn(right[:2], num_draws=2000)
    ways = found.errors[:, 0] - found.errors[:, 1] + found.errors[:, 1] - found.errors[:, 2]
    assert ways == pytest.approx(found.errors[:, 0] - found.errors[:, 2])
    assert found.by_examples[:, :2] == pytest.approx(of_two.by_examples), "draws hang on nothing but examples and seed"


def test_the_same_study_has_the_same_draws_to_the_last_bit() -> None:
    right = some(examples=3000)
    one, other = drawn(right), drawn(right)
    assert (one.values == other.values).all()


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 0.03), (3, 0.0), (3, 0.03), (5, 0.1)])
def test_where_there_is_no_difference_at_most_one_in_twenty_is_claimed(seeds: int, spread: float) -> None:
    """500 studies of two arms that are equally good: seeds and examples are drawn anew for each."""
    generator = np.random.default_rng(11)
    num_studies, num_examples, claims = 500, 100, 0
    draws = [*draws_of_examples(num_examples, 1000)]
    for _ in range(num_studies):
        hard = generator.random(num_examples) < 0.25  # which nobody gets right
        skill = generator.normal(0.9, spread, (2, seeds, 1))
        right = (generator.random((2, seeds, num_examples)) < skill) & ~hard
        found = difference(draw(outcomes(right.astype(float)), RATIO.value, draws), 0, 1, confidence=0.95)
        claims += found.p_value <= 0.05
    assert claims <= 34, claims  # of 500, 0.05 is 25 +- 4.9


def test_of_five_arms_without_a_difference_one_in_twenty_studies_claims_any() -> None:
    generator = np.random.default_rng(12)
    num_studies, claims = 300, 0
    examples = [*draws_of_examples(100, 2000)]
    for _ in range(num_studies):
        skill = generator.normal(0.8, 0.02, (6, 3, 1))
        right = (generator.random((6, 3, 100)) < skill).astype(float)
        draws = draw(outcomes(right), RATIO.value, examples)
        p_values = [difference(draws, way, 0, confidence=0.95).p_value for way in range(1, 6)]
        claims += min(holm(p_values)) <= 0.05
    assert claims <= 22, claims  # 15 +- 3.8


def test_a_difference_that_is_there_is_seen() -> None:
    generator = np.random.default_rng(13)
    right = (generator.random((2, 3, 2000)) < np.array([0.85, 0.80])[:, None, None]).astype(float)
    found = difference(drawn(right, num_draws=4000), 0, 1, confidence=0.95)
    assert found.low > 0
    assert found.p_value < 0.05


def test_the_share_of_a_gap_is_that_of_the_means_with_an_interval_around_it() -> None:
    generator = np.random.default_rng(14)
    skill = np.array([0.7, 0.8, 0.9])[:, None, None]
    right = (generator.random((3, 3, 4000)) < skill).astype(float)
    right[2] = right[2, :1]  # one teacher
    found = drawn(right, num_draws=4000)
    share = share_of_gap(found, 1, start=0, end=2, confidence=0.95)
    start, way, end = right.mean(axis=(1, 2))
    assert share is not None
    assert share.estimate == pytest.approx((way - start) / (end - start), rel=1e-12)
    assert share.low < share.estimate < share.high
    assert share.low > 0.2
    assert share.high < 0.8


def test_where_the_teacher_may_be_no_better_there_is_no_share() -> None:
    right = np.concatenate([some(ways=1, seed=1), some(ways=1, seed=2), some(ways=1, seed=1)])
    assert share_of_gap(drawn(right, num_draws=500), 1, start=0, end=2, confidence=0.95) is None


def closed_testing(p_values: list[float]) -> list[float]:
    """Holm's by its definition: the largest Bonferroni p-value of all sets of hypotheses with a given one in it."""
    found = []
    for index in range(len(p_values)):
        others = [one for one in range(len(p_values)) if one != index]
        sets = [[index, *rest] for size in range(len(p_values)) for rest in itertools.combinations(others, size)]
        found.append(max(min(len(one) * min(p_values[i] for i in one), 1.0) for one in sets))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_holms_correction_is_closed_testing_by_bonferroni(seed: int) -> None:
    p_values = (np.random.default_rng(seed).random(5) ** 3).tolist()
    assert holm(p_values) == pytest.approx(closed_testing(p_values), rel=1e-12)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
