"""Rows go to microbatches and ranks: each once, within the budget, and the same whoever computes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted_ds.data.grouping import by_token_budget, interleaved, steps_of_window

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=70)


def rounded(length: int, multiple_of: int) -> int:
    return -(-length // multiple_of) * multiple_of


def padded_size(microbatch: list[int | None], lengths: list[int], multiple_of: int) -> int:
    return len(microbatch) * max(rounded(1 if i is None else lengths[i], multiple_of) for i in microbatch)


def least_number_of_microbatches(lengths: list[int], budget: int, multiple_of: int) -> int:
    """By taking the longest rows first, as many as go in."""
    left, number = sorted((rounded(length, multiple_of) for length in lengths), reverse=True), 0
    while left:
        left, number = left[budget // left[0] :], number + 1
    return number


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_ranks_take_every_world_sizeth_row_in_groups_that_follow_on(
    micro_batch_size: int, per_rank: int, world_size: int
) -> None:
    rows = list(range(micro_batch_size * per_rank * world_size))
    for rank in range(world_size):
        mine = interleaved(rows, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
        assert {len(one) for one in mine} == {micro_batch_size}
        assert [row for one in mine for row in one] == [
            rank + world_size * index for index in range(micro_batch_size * per_rank)
        ]


@given(LENGTHS, st.integers(1, 8), st.integers(0, 200), st.integers(1, 6))
def test_a_token_budget_is_kept_and_every_row_is_there_once(
    lengths: list[int], multiple_of: int, spare: int, world_size: int
) -> None:
    budget = rounded(max(lengths), multiple_of) + spare
    of_ranks = by_token_budget(lengths, budget=budget, multiple_of=multiple_of, world_size=world_size)
    assert len(of_ranks) == world_size
    assert len({len(microbatches) for microbatches in of_ranks}) == 1, "ZeRO-3 would wait for ever"
    everything = [one for microbatches in of_ranks for one in microbatches]
    assert sorted(i for one in everything for i in one if i is not None) == list(range(len(lengths)))
    assert max(padded_size(one, lengths, multiple_of) for one in everything) <= budget
    if any(None in one for one in everything):
        assert max(len(one) for one in everything) == 1, "rows could have been spread instead"
        assert sum(one == [None] for one in everything) < world_size
    needed = least_number_of_microbatches(lengths, budget, multiple_of)
    assert len(everything) == -(-needed // world_size) * world_size


@given(LENGTHS, st.integers(1, 8), st.integers(0, 200), st.integers(1, 6))
def test_ranks_have_like_work(lengths: list[int], multiple_of: int, spare: int, world_size: int) -> None:
    budget = rounded(max(lengths), multiple_of) + spare
    of_ranks = by_token_budget(lengths, budget=budget, multiple_of=multiple_of, world_size=world_size)
    sizes = [
        [0 if one == [None] else padded_size(one, lengths, multiple_of) for one in microbatches]
        for microbatches in of_ranks
    ]
    loads = [sum(of_rank) for of_rank in sizes]
    largest = max(size for of_rank in sizes for size in of_rank)
    assert max(loads) - min(loads) <= largest
    for before, after in zip(list(zip(*sizes, strict=True)), list(zip(*sizes, strict=True))[1:], strict=False):
        assert min(before) >= max(after), "in one round, ranks wait for the largest"


def test_what_is_left_over_is_spread_instead_of_a_small_last_microbatch() -> None:
    of_ranks = by_token_budget([10] * 31, budget=100, multiple_of=1, world_size=2)
    assert sorted(len(one) for microbatches in of_ranks for one in microbatches) == [7, 8, 8, 8]


def test_lengths_count_as_they_are_padded() -> None:
    (microbatches,) = by_token_budget([9, 9, 9, 9], budget=32, multiple_of=16, world_size=1)
    assert [len(one) for one in microbatches] == [2, 2]


def test_fewer_rows_than_ranks_leave_some_an_empty_row() -> None:
    assert by_token_budget([3, 5], budget=8, multiple_of=1, world_size=4) == [[[1]], [[0]], [[None]], [[None]]]


def test_a_row_over_the_budget_is_no_case_for_it() -> None:
    with pytest.raises(ValueError, match="a row of 9 tokens, padded to 16, is over 12"):
        by_token_budget([2, 9], budget=12, multiple_of=8, world_size=1)


@given(
    st.integers(1, 8).flatmap(
        lambda batch: st.tuples(st.just(batch), st.integers(1, 6).map(lambda steps: steps * batch))
    ),
    st.integers(0, 2**32),
    st.integers(0, 1000),
)
def test_a_window_is_cut_into_steps_of_similar_lengths(sizes: tuple[int, int], seed: int, window: int) -> None:
    batch, count = sizes
    lengths = [random.Random(f"{seed} {index}").randint(1, 60) for index in range(count)]
    of_steps = [batch] * (count // batch)
    steps = steps_of_window(lengths, sizes=of_steps, seed=seed, window=window)
    assert steps == steps_of_window(lengths, sizes=of_steps, seed=seed, window=window)
    assert {len(step) for step in steps} == {batch}
    assert sorted(index for step in steps for index in step) == list(range(count))
    shortest_first = sorted(steps, key=lambda step: (lengths[step[0]], lengths[step[-1]]))
    flat = [lengths[index] for step in shortest_first for index in step]
    assert flat == sorted(lengths)


def test_the_order_of_steps_is_shuffled_by_seed_and_window() -> None:
    orders = {
        tuple(step[0] for step in steps_of_window(range(1, 33), sizes=[4] * 8, seed=seed, window=window))
        for seed in range(3)
        for window in range(3)
    }
    assert len(orders) == 9
