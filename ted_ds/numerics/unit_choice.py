"""Which units of a model a narrower one keeps, by scores of how much each does (:mod:`ted_ds.numerics.importance`)."""

from __future__ import annotations

from collections.abc import Sequence

from ted_ds.numerics.block_choice import DIGITS


def highest(scores: Sequence[float], count: int) -> list[int]:
    """The ``count`` units with the highest scores, in ascending order; of equal ones the first.

    Scores are equal that agree in :data:`~ted_ds.numerics.block_choice.DIGITS` digits of the highest of all.
    """
    largest = max(map(abs, scores), default=0.0) or 1.0
    order = sorted(range(len(scores)), key=lambda unit: (-round(scores[unit] / largest, DIGITS), unit))
    return sorted(order[:count])


def heads_in_groups(
    scores: Sequence[float], groups: int, *, keep_groups: int, keep_heads: int
) -> tuple[list[int], list[int]]:
    """The heads to keep, and the heads of keys and values that they read, both in ascending order.

    ``keep_groups`` of the ``groups`` of heads that share one stay, each with as many heads: its best ones, and of the
    groups those whose best ones score most together.
    """
    in_group, of_group = len(scores) // groups, keep_heads // keep_groups
    best = []
    for group in range(groups):
        own = scores[group * in_group : (group + 1) * in_group]
        best.append([group * in_group + head for head in highest(own, of_group)])
    kept = highest([sum(scores[head] for head in heads) for heads in best], keep_groups)
    return [head for group in kept for head in best[group]], kept
