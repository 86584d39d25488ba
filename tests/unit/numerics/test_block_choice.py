"""Which blocks are kept: by number, by influence, and by a search, against plain enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from ted_ds.numerics.block_choice import (
    ends,
    most_influential,
    passes_of,
    rounds_of_search,
    search,
    spread,
)
from ted_ds.numerics.importance import influence_sum


@pytest.mark.parametrize(
    ("depth", "count", "blocks"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (12, 3, [0, 6, 11]),
        (12, 1, [0]),
        (30, 10, [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),
        (4, 4, [0, 1, 2, 3]),
        (1, 1, [0]),
    ],
)
def test_blocks_are_spread_with_the_first_and_the_last(depth: int, count: int, blocks: list[int]) -> None:
    assert spread(depth, count) == blocks


@pytest.mark.parametrize(
    ("depth", "count", "blocks"),
    [(12, 6, [0, 1, 2, 9, 10, 11]), (12, 5, [0, 1, 2, 10, 11]), (5, 1, [0]), (4, 4, [0, 1, 2, 3]), (9, 2, [0, 8])],
)
def test_of_the_ends_the_first_gets_the_odd_block(depth: int, count: int, blocks: list[int]) -> None:
    assert ends(depth, count) == blocks


@pytest.mark.parametrize("choose", [spread, ends])
def test_any_number_of_blocks_is_chosen_once_each_in_order(choose: object) -> None:
    for depth in range(1, 14):
        for count in range(1, depth + 1):
            blocks = choose(depth, count)  # type: ignore[operator]
            assert len({*blocks}) == count
            assert blocks == sorted(blocks)
            assert blocks[0] == 0
            assert count == 1 or blocks[-1] == depth - 1


def test_influence_is_one_less_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(7, 5, generator=generator) for _ in range(2))
    found = influence_sum(before, after)
    assert found.dtype == torch.float64
    plain = 0.0
    for x, y in zip(before.double().tolist(), after.double().tolist(), strict=True):
        product = sum(a * b for a, b in zip(x, y, strict=True))
        plain += 1 - product / (sum(a * a for a in x) * sum(b * b for b in y)) ** 0.5
    assert float(found) == pytest.approx(plain, rel=1e-12)
    assert float(influence_sum(before, 3 * before)) == pytest.approx(0, abs=1e-12)
    assert float(influence_sum(before, -before)) == pytest.approx(14)


def test_blocks_of_least_influence_go_and_of_equal_ones_the_later() -> None:
    assert most_influential([0.5, 0.1, 0.3, 0.1, 0.4], 3) == [0, 2, 4]
    assert most_influential([0.5, 0.1, 0.3, 0.1, 0.4], 4) == [0, 1, 2, 4]
    assert most_influential([0.1 + 1e-9, 0.1, 0.1 - 1e-9], 2) == [0, 1], "no more than rounding"
    assert most_influential([0.0, 0.2, 0.3], 2, stay=[0]) == [0, 2]


@pytest.mark.parametrize(
    ("free", "left_out", "most", "rounds"),
    [
        (4, 2, 7, [4, 3]),  # all of them
        (4, 2, 6, [3, 3]),
        (4, 2, 4, [2, 2]),
        (4, 2, 3, [1, 2]),  # early rounds follow influence
        (4, 2, 1, [1, 1]),
        (4, 2, 0, [1, 1]),
        (3, 3, 99, [3, 2, 1]),
        (30, 20, 64, [3] * 20),
        (4, 0, 9, []),
    ],
)
def test_rounds_keep_to_their_bound(free: int, left_out: int, most: int, rounds: list[int]) -> None:
    assert rounds_of_search(free, left_out, most) == rounds
    assert passes_of(rounds) <= most
    assert rounds != [4, 3] or passes_of(rounds) == 7


def loss_of(kept: Sequence[int]) -> float:
    """Of blocks that help each other: what the others do for each hangs on which are there."""
    return 10 - sum((block * 7 % 5 + 1) * (1 + 0.3 * ((block * other) % 3)) for block in kept for other in kept) / 50


def test_a_search_leaves_out_what_is_missed_least_in_each_round() -> None:
    influence = [0.3, 0.2, 0.9, 0.1, 0.6, 0.5]
    kept: tuple[int, ...] = tuple(range(6))
    for one in search(influence, loss_of, [6, 5, 4]):
        without = {block: loss_of([other for other in kept if other != block]) for block in kept}
        assert dict(one.losses) == without
        assert one.left_out == min(without, key=without.__getitem__)
        kept = one.kept
        assert loss_of(kept) == min(
            loss_of(part) for part in itertools.combinations(sorted([*kept, one.left_out]), len(kept))
        )
    assert len(kept) == 3


def test_a_search_tries_the_blocks_of_least_influence() -> None:
    influence = [0.3, 0.2, 0.9, 0.1, 0.6, 0.5]
    first, second, third = search(influence, loss_of, [1, 3, 2], stay=[0])
    assert (first.left_out, dict(first.losses)) == (3, {}), "a single candidate is not looked at"
    assert {*second.losses} == {1, 5, 4}
    assert 0 in third.kept
    assert len(third.kept) == 3


def test_of_equal_losses_influence_decides() -> None:
    found = list(search([0.3, 0.2, 0.1], lambda kept: 1 + 1e-9 * len(kept) * kept[0], [3, 2]))
    assert [one.left_out for one in found] == [2, 1]
