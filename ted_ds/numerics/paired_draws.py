"""What runs score on test sets and with seeds that were drawn again: the same draws for all, so that they are paired.

Examples are drawn with replacement (Efron's bootstrap), all runs scored on the same ones. Seeds are few: drawing three
of three would understate their variance by a third, and knows ten outcomes. So to each draw of examples the mean over
seeds gets an error of Student's t, with as many degrees of freedom as there are seeds beside one, scaled by their
standard error. The sum of two such parts is distributed as Behrens and Fisher's fiducial difference is, whose intervals
are too wide rather than too narrow. That runs differ by single examples is in both parts, which widens them, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

NUM_DRAWS = 10_000
CHUNK = 1 << 22
"""Counts of examples that are held at once."""


@dataclass(frozen=True)
class Draws:
    """What several ways to train score, each with the same seeds and on the same examples."""

    scores: np.ndarray
    """``[ways, seeds]``, on all examples."""
    by_examples: np.ndarray
    """``[draws, ways]``: the mean over seeds on the examples of each draw."""
    errors: np.ndarray
    """``[draws, ways]``: of that mean, because there are no more seeds; all 0 with one seed."""

    @property
    def means(self) -> np.ndarray:
        """``[ways]``: the mean over seeds on all examples."""
        return self.scores.mean(axis=1)

    @property
    def values(self) -> np.ndarray:
        """``[draws, ways]``: both kinds of chance together."""
        return self.by_examples + self.errors


def draws_of_examples(num_examples: int, num_draws: int = NUM_DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each example is in each draw, ``[draws, examples]`` in parts."""
    generator = np.random.default_rng(seed)
    chances = np.full(num_examples, 1 / num_examples)
    chunk = max(CHUNK // num_examples, 1)
    for start in range(0, num_draws, chunk):
        counts = generator.multinomial(num_examples, chances, size=min(chunk, num_draws - start))
        yield counts.astype(np.float64)


def draw(
    examples: Sequence[Sequence[np.ndarray]],
    value: Callable[[np.ndarray], np.ndarray],
    draws: Iterable[np.ndarray],
    *,
    seed: int = 1,
) -> Draws:
    """Score every run on the same draws of examples, and the mean over seeds with an error of its own.

    Args:
        examples: Of each way and seed, ``[examples, sums]`` (:class:`ted_ds.numerics.metric_sums.Form`).
        value: From sums to the metric.
        draws: See :func:`draws_of_examples`.
        seed: Of the errors because seeds are few; not that of the draws.
    """
    flat = [run for way in examples for run in way]
    num_ways, num_seeds = len(examples), len(examples[0])
    num_examples = len(flat[0])
    everything = np.concatenate(flat, axis=1)
    ends = np.cumsum([run.shape[1] for run in flat])[:-1]

    def scored(counts: np.ndarray) -> np.ndarray:
        sums = np.split(counts @ everything, ends, axis=-1)
        return np.stack([value(of_run) for of_run in sums], axis=-1).reshape(-1, num_ways, num_seeds)

    scores = scored(np.ones((1, num_examples)))[0]
    by_examples = np.concatenate([scored(counts).mean(axis=-1) for counts in draws])
    return Draws(scores, by_examples, _errors_of_seeds(scores, len(by_examples), np.random.default_rng(seed)))


def _errors_of_seeds(scores: np.ndarray, num_draws: int, generator: np.random.Generator) -> np.ndarray:
    """``[draws, ways]``: for any difference of ways its standard error over seeds times one Student's t, drawn jointly.

    Normal weights of the seeds' residuals are a normal variable of the right variance for every difference at once;
    divided by the root of one chi-squared over its degrees of freedom, each is a Student's t.
    """
    num_seeds = scores.shape[1]
    if num_seeds < 2:
        return np.zeros((num_draws, len(scores)))
    residuals = scores - scores.mean(axis=1, keepdims=True)
    normal = generator.standard_normal((num_draws, num_seeds)) @ residuals.T
    scale = np.sqrt(generator.chisquare(num_seeds - 1, size=(num_draws, 1)))
    return normal / scale / np.sqrt(num_seeds)


@dataclass(frozen=True)
class Difference:
    """How much higher a way scores than another one, and how sure that is."""

    estimate: float
    low: float
    high: float
    """Of the interval."""
    p_value: float
    """Two-sided, of no difference: of the draws, as many as are on the other side of 0, twice."""
    error_of_examples: float
    """Standard error, because there are no more examples."""
    error_of_seeds: float
    """Standard error, because there are no more seeds; 0 with one."""


def difference(draws: Draws, way: int, other: int, *, confidence: float) -> Difference:
    """Compare two ways, draw by draw."""
    found = draws.values[:, way] - draws.values[:, other]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    beyond = int(min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0)))
    of_seeds = draws.scores[way] - draws.scores[other]
    num_seeds = len(of_seeds)
    return Difference(
        estimate=float(of_seeds.mean()),
        low=float(low),
        high=float(high),
        p_value=min(2 * (beyond + 1) / (len(found) + 1), 1.0),
        error_of_examples=float((draws.by_examples[:, way] - draws.by_examples[:, other]).std(ddof=1)),
        error_of_seeds=float(of_seeds.std(ddof=1) / np.sqrt(num_seeds)) if num_seeds > 1 else 0.0,
    )


@dataclass(frozen=True)
class Share:
    """Which share of the way from one score to another a third has gone."""

    estimate: float
    low: float
    high: float


def share_of_gap(draws: Draws, way: int, *, start: int, end: int, confidence: float) -> Share | None:
    """The share of the gap from ``start`` to ``end`` that a way has closed; None where there may be no such gap.

    That is where draws disagree about which of the two is higher: the quotient then has no interval. Where few do, its
    interval is that of the others.
    """
    gap = draws.values[:, end] - draws.values[:, start]
    means = draws.means
    tail = (1 - confidence) / 2
    agree = gap * (means[end] - means[start]) > 0
    if np.mean(agree) < 1 - tail:
        return None
    closed = draws.values[agree, way] - draws.values[agree, start]
    low, high = np.quantile(closed / gap[agree], [tail, 1 - tail])
    return Share(float((means[way] - means[start]) / (means[end] - means[start])), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that may be compared with the rate of false claims among all of them (Holm 1979).

    The k-th smallest of n is multiplied by n - k + 1, and none is below one before it.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(p_values[index] * (len(p_values) - rank), 1.0))
        adjusted[index] = highest
    return adjusted


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t; from 3 degrees of freedom on by Abramowitz and Stegun's series (26.7.5), to half a per cent."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
