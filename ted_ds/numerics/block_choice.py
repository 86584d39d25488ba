"""Which blocks of a deep model a shallower one keeps. They are numbered from 0, as where blocks are cut.

``spread`` and ``ends`` go by the numbers alone. The others go by the influence of a block
(:func:`ted_ds.numerics.importance.influence_sum`), and by the loss of the model without it. Without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

DIGITS = 6
"""Behind the point: scores that agree in these are equal, as passes on other ranks and in other microbatches differ in
those behind. Of equal blocks the one of the lower number stays."""


def spread(depth: int, count: int) -> list[int]:
    """``count`` blocks evenly over ``depth``, with the first and the last: block ``k (depth - 1) / (count - 1)``.

    Rounded to the nearest, halves up; of one, the first (Shleifer and Rush 2020, arXiv:2010.13002, section 3.1, copy
    such blocks; DistilGPT-2 has those of 12 to 6).
    """
    steps = max(count - 1, 1)
    return [(2 * k * (depth - 1) + steps) // (2 * steps) for k in range(count)]


def ends(depth: int, count: int) -> list[int]:
    """The first ``ceil(count / 2)`` blocks and the last ``floor(count / 2)``: those between are left out.

    (Sajjad et al. 2020, arXiv:2004.03844, section 3.1: symmetric dropping.)
    """
    num_first = -(-count // 2)
    return [*range(num_first), *range(depth - count + num_first, depth)]


BY_NUMBER: Mapping[str, Callable[[int, int], list[int]]] = {"spread": spread, "ends": ends}
"""Choices of ``count`` blocks of ``depth`` that go by their numbers alone."""


def least_first(influence: Sequence[float], blocks: Collection[int]) -> list[int]:
    """Blocks in the order in which influence leaves them out."""
    return sorted(blocks, key=lambda block: (round(influence[block], DIGITS), -block))


def most_influential(influence: Sequence[float], count: int, *, stay: Collection[int] = ()) -> list[int]:
    """The ``count`` blocks of most influence, those that must ``stay`` among them, in ascending order."""
    free = [block for block in range(len(influence)) if block not in stay]
    left_out = least_first(influence, free)[: len(influence) - count]
    return [block for block in range(len(influence)) if block not in left_out]


def rounds_of_search(num_free: int, num_left_out: int, most_passes: int) -> list[int]:
    """How many blocks each round of a search tries to leave out, of which it leaves out one.

    As many in each as ``most_passes`` over the text allow, one for each block that is tried. Where they do not allow
    two, the first rounds try none: the block of least influence goes.

    Args:
        num_free: Blocks that may be left out.
        num_left_out: Those that are to be.
        most_passes: How often the model may be run.
    """
    left = [num_free - before for before in range(num_left_out)]
    for most in range(num_free, 1, -1):
        tried = [min(most, of_round) for of_round in left]
        if passes_of(tried) <= most_passes:
            return tried
    searched = min(most_passes // 2, num_left_out)
    return [min(1 if index < num_left_out - searched else 2, of_round) for index, of_round in enumerate(left)]


def passes_of(rounds: Sequence[int]) -> int:
    """How often the model is run for these rounds of a search: a single candidate is not looked at."""
    return sum(tried for tried in rounds if tried > 1)


@dataclass(frozen=True)
class Round:
    """What a round of a search did."""

    left_out: int
    losses: Mapping[int, float]
    """Without each of the blocks that were tried; none where only one was to be."""
    kept: tuple[int, ...]
    """The blocks that are left, in ascending order."""


def search(
    influence: Sequence[float],
    loss_of: Callable[[Sequence[int]], float],
    rounds: Sequence[int],
    *,
    stay: Collection[int] = (),
) -> Iterator[Round]:
    """Leave out block after block: of those of least influence the one without which the loss is lowest.

    Args:
        influence: Of each block.
        loss_of: The loss of the model with these blocks alone.
        rounds: How many blocks each round tries (:func:`rounds_of_search`).
        stay: Blocks that are not left out.
    """
    kept = [*range(len(influence))]
    for most in rounds:
        tried = least_first(influence, [block for block in kept if block not in stay])[:most]
        losses: dict[int, float] = {}
        if len(tried) > 1:
            losses = {block: loss_of([one for one in kept if one != block]) for block in tried}
        left_out = min(tried, key=lambda block: (round(losses.get(block, 0.0), DIGITS), tried.index(block)))
        kept.remove(left_out)
        yield Round(left_out, losses, tuple(kept))
