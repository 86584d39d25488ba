"""Which rows go together, and to which rank: pure functions that every rank evaluates to the same result.

Rows are known by their place in a step and their length in tokens.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")


def interleaved(rows: Sequence[Row], *, micro_batch_size: int, rank: int, world_size: int) -> list[Sequence[Row]]:
    """A rank's microbatches of one step: of its rows ``rank``, ``rank + world_size``, ..., groups that follow on.

    Rows that stand together, such as those of one document, or of one length, so come to different ranks.
    """
    mine = rows[rank::world_size]
    return [mine[start : start + micro_batch_size] for start in range(0, len(mine), micro_batch_size)]


def steps_of_window(lengths: Sequence[int], *, sizes: Sequence[int], seed: int, window: int) -> list[list[int]]:
    """Steps of similar lengths out of the rows of consecutive steps, in shuffled order.

    Args:
        lengths: Tokens of each row of the window.
        sizes: Rows of each step, from the shortest; all of the window's together.
        seed: The recipe's seed.
        window: The window's number, from 0; together with ``seed`` it decides the order of steps, whatever their rows.

    Returns:
        The places of each step's rows, by ascending length; together each place of the window once.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    steps = [by_length[stop - size : stop] for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]
    random.Random(f"{seed} window {window}").shuffle(steps)
    return steps


def by_token_budget(
    lengths: Sequence[int], *, budget: int, multiple_of: int, world_size: int
) -> list[list[list[int | None]]]:
    """Microbatches of one step whose padded size keeps to a budget, dealt out to the ranks.

    Rows are cut in descending order of length, so that those of a microbatch differ little. It is as many microbatches
    as the budget needs, brought up to a multiple of the number of ranks, and each is only as large as that many make
    it, so that the ranks have like work: in each round of forward passes, and over the step.

    Args:
        lengths: Tokens of each row of the step, at least one.
        budget: Most padded tokens of a microbatch: rows times the longest, rounded up to ``multiple_of``.
        multiple_of: What lengths are padded to.
        world_size: Ranks.

    Returns:
        Of each rank, as many microbatches as of every other, as places of rows. Every row is there once. A None is an
        empty row: a microbatch for a rank that is left over when every row already has a microbatch of its own.

    Raises:
        ValueError: A row alone is larger than the budget.
    """
    descending = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    padded = [-(-lengths[place] // multiple_of) * multiple_of for place in descending]
    if padded[0] > budget:
        raise ValueError(f"a row of {lengths[descending[0]]} tokens, padded to {padded[0]}, is over {budget}")
    needed = len(_cut(padded, budget))
    wanted = -(-needed // world_size) * world_size
    capacities = range(padded[0], budget + 1)
    # a larger capacity never needs more microbatches
    level = bisect.bisect_left(capacities, True, key=lambda capacity: len(_cut(padded, capacity)) <= wanted)
    cut = _cut(padded, capacities[level])

    def size(rows: range) -> int:
        return len(rows) * padded[rows[0]] if rows else 0

    while len(cut) % world_size:
        largest = max(cut, key=lambda rows: (len(rows) > 1, size(rows)))
        half = -(-len(largest) // 2)
        cut[cut.index(largest)] = largest[:half]
        cut.append(largest[half:])  # nothing, where every row is alone
    cut.sort(key=size, reverse=True)
    of_ranks: list[list[list[int | None]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for start in range(0, len(cut), world_size):
        # the largest of a round goes to the rank with the least so far
        by_load = sorted(range(world_size), key=loads.__getitem__)
        for rank, rows in zip(by_load, cut[start : start + world_size], strict=True):
            of_ranks[rank].append([descending[row] for row in rows] or [None])
            loads[rank] += size(rows)
    return of_ranks


def _cut(padded: Sequence[int], capacity: int) -> list[range]:
    """Rows of descending padded length, each piece as many as ``capacity`` holds."""
    pieces: list[range] = []
    start = 0
    while start < len(padded):
        stop = min(start + capacity // padded[start], len(padded))
        pieces.append(range(start, stop))
        start = stop
    return pieces
