"""What a comparison allows to say, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from ted_ds.errors import counted
from ted_ds.numerics.paired_draws import Difference, student_quantile

LEVEL = 0.05
"""The share of studies without any difference in which one may be claimed."""
POWER = 0.8
"""The share of studies that are to tell a difference that there is."""
BEYOND_ITS_END = 1 + NormalDist().inv_cdf(POWER) / NormalDist().inv_cdf(1 - LEVEL / 2)
"""So many times an interval's half is a difference that so many studies tell; one of a single half, every other one."""
RAW = ("loss", "perplexity", "pseudo_perplexity")
"""Metrics that are shown as they are; of others a hundredth is a point."""
TOO_MANY = 100
"""So many times the examples, or seeds, there are: then no number is told."""


@dataclass(frozen=True)
class Measure:
    """How a metric is shown."""

    metric: str
    higher_is_better: bool

    @property
    def unit(self) -> str:
        """Behind a difference."""
        return self.metric if self.metric in RAW else "points"

    @property
    def scale(self) -> float:
        """Of a difference."""
        return 1.0 if self.metric in RAW else 100.0

    def gain(self, found: Difference) -> tuple[float, float, float]:
        """How much better, and the interval, in the unit."""
        values = [self.scale * one for one in (found.estimate, found.low, found.high)]
        return (values[0], values[1], values[2]) if self.higher_is_better else (-values[0], -values[2], -values[1])

    def shown(self, number: float) -> str:
        """A difference without its sign."""
        return f"{abs(number):.3g}" if self.metric in RAW else f"{abs(number):.1f}"

    def signed(self, number: float) -> str:
        """A difference with its sign."""
        text = self.shown(number)
        return f"{'-' if number < 0 and float(text) else '+'}{text}"

    def interval(self, low: float, high: float) -> str:
        """Of a gain."""
        return f"[{self.signed(low)}, {self.signed(high)}]"


def verdict(arm: str, baseline: str, found: Difference, holm_p: float, measure: Measure, size: tuple[int, int]) -> str:
    """What may be said of an arm.

    Args:
        arm: The arm.
        baseline: What it is compared with.
        found: The difference.
        holm_p: Its p-value among those of all arms.
        measure: How the metric is shown.
        size: How many examples and seeds there are.
    """
    gain, low, high = measure.gain(found)
    num_examples, num_seeds = size
    better = "better" if gain > 0 else "worse"
    by = f"by {measure.shown(gain)} {measure.unit} {measure.interval(low, high)}"
    alone = "" if num_seeds > 1 else "; of one seed, and another may say otherwise"
    if low == high == 0:
        return f"none of the {num_examples:,} examples tells {arm} from {baseline}: both came out the same{alone}"
    if holm_p <= LEVEL:
        return f"{arm} {'is' if num_seeds > 1 else 'may be'} {better} than {baseline} {by}{alone}"
    if low > 0 or high < 0:
        return (
            f"{arm} may be {better} than {baseline} {by}, but of the arms that were compared one may look so by chance "
            f"(p {holm_p:.2g} after Holm){alone}"
        )
    reach, seeds = BEYOND_ITS_END * (high - low) / 2, counted(num_seeds, "seed")
    return (
        f"no difference between {arm} and {baseline} can be seen: {measure.signed(gain)} {measure.unit} "
        f"{measure.interval(low, high)}; with {num_examples:,} examples and {seeds} four studies of five tell one of "
        f"{measure.shown(reach)}, and for one of the measured size they need "
        f"{needed(found, num_examples, num_seeds)}{alone}"
    )


def needed(found: Difference, num_examples: int, num_seeds: int) -> str:
    """How many examples or seeds it would take for :data:`POWER` to tell a difference of the measured size."""
    examples, seeds = found.error_of_examples**2, found.error_of_seeds**2
    # of the interval, which is wider than by a normal distribution where seeds are few
    errors_to_its_end = (found.high - found.low) / 2 / math.sqrt(examples + seeds) if examples + seeds > 0 else 1.0
    target = abs(found.estimate) / errors_to_its_end / BEYOND_ITS_END
    if target > 0 and seeds < target**2:
        times = examples / (target**2 - seeds)
        if times < TOO_MANY:
            return f"about {_rounded(times * num_examples)} examples"
    if num_seeds > 1:
        enough = _enough_seeds(abs(found.estimate), errors_to_its_end, examples, (seeds, num_seeds))
        if enough is not None:
            return f"about {_rounded(enough)} seeds"
    if target > 0 and 2 * max(examples, seeds) < TOO_MANY * target**2:
        times = [max(2 * one / target**2, 1.0) for one in (examples, seeds)]
        return f"about {_rounded(times[0] * num_examples)} examples and {_rounded(times[1] * num_seeds)} seeds"
    return f"more than {TOO_MANY} times as many"


def _enough_seeds(
    estimate: float, errors_to_its_end: float, examples: float, measured: tuple[float, int]
) -> int | None:
    """How many it would take; None for too many.

    ``measured`` is the variance by seeds, of how many. An interval by Student's t takes fewer errors the more there
    are.
    """
    seeds, number = measured
    now = student_quantile(1 - LEVEL / 2, number - 1)
    for more in range(2, TOO_MANY * number):
        errors = errors_to_its_end * min(student_quantile(1 - LEVEL / 2, more - 1) / now, 1.0)
        if estimate >= errors * BEYOND_ITS_END * math.sqrt(examples + seeds * number / more):
            return more
    return None


def _rounded(number: float) -> str:
    """Up, to two digits."""
    step = 10 ** max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return f"{math.ceil(number / step) * step:,}"
