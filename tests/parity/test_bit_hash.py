"""The hash by which gradients are compared: the polynomial that it says, in which nothing cancels as in a sum."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from ted_ds.runtime.bit_hash import BASE, MODULUS, ROW, chained, hash_of_bits
from tests.device import DEVICE

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
TRIALS = 1000


def values_of(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 50).to(dtype).to(DEVICE)


def bits_of(values: Tensor) -> Tensor:
    return values.view(-1).view(INTEGERS[values.element_size()])


def plainly(values: Tensor) -> int:
    """The same by Python's integers, which have no end."""
    content = values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    words = [int.from_bytes(content[at : at + 4], "little", signed=True) for at in range(0, len(content) // 4 * 4, 4)]
    rest = content[len(content) // 4 * 4 :]
    words += [int.from_bytes(rest, "little", signed=True)] if values.element_size() == 2 and rest else list(rest)
    total, power = 0, 1
    for word in words:
        total, power = (total + word * power) % MODULUS, power * BASE % MODULUS
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 2 * ROW - 1, 9 * ROW + 5])
def test_it_is_the_polynomial_wherever_it_is_computed(dtype, count):
    values = values_of(count + 1, dtype)[1:]  # which begins in the middle of a word
    assert int(hash_of_bits(values)) % MODULUS == plainly(values)


def test_the_bits_count_in_the_order_of_elements_whatever_the_strides():
    values = values_of(35, torch.float32).view(5, 7)
    assert hash_of_bits(values.t()) == hash_of_bits(values.t().contiguous())
    assert hash_of_bits(values.t()) != hash_of_bits(values)
    assert hash_of_bits(values.clone()) == hash_of_bits(values)
    hash_of_bits(values_of(1, torch.float32).view(()).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_bit_counts(dtype):
    values = values_of(35, dtype)
    before = hash_of_bits(values)
    for bit in range(8 * values.element_size()):
        other = values.clone()
        bits_of(other)[17] ^= (1 << bit) if bit < 8 * values.element_size() - 1 else -(1 << bit)
        assert hash_of_bits(other) != before, bit


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_flipped_bits_never_cancel(dtype):
    """Nor the same bit of two numbers, which cancels in a plain sum wherever it was set in one of them alone."""
    count = ROW + 11
    values, draw = values_of(count, dtype), torch.Generator().manual_seed(1)
    width, before, missed = 8 * values.element_size(), hash_of_bits(values), 0
    bits = bits_of(values)
    for trial in range(TRIALS):
        one, other = torch.randperm(count, generator=draw)[:2].tolist()
        first, second = torch.randint(width, (2,), generator=draw).tolist()
        second = second if trial % 2 else first  # half of them the same bit
        for place, bit in ((one, first), (other, second)):
            bits[place] ^= (1 << bit) if bit < width - 1 else -(1 << bit)
        missed += bool(hash_of_bits(values) == before)
        for place, bit in ((one, first), (other, second)):
            bits[place] ^= (1 << bit) if bit < width - 1 else -(1 << bit)
    assert hash_of_bits(values) == before
    assert missed == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_swaps_and_permutations_are_seen(dtype):
    rows, width = 64, 1024
    values, draw = values_of(rows * width, dtype).view(rows, width), torch.Generator().manual_seed(2)
    before, flat = hash_of_bits(values), values.view(-1)
    for _ in range(TRIALS // 5):
        one, other = torch.randint(rows * width, (2,), generator=draw).tolist()
        changed = flat.clone()
        changed[[one, other]] = flat[[other, one]]
        assert torch.equal(changed, flat) or hash_of_bits(changed) != before
        order = torch.randperm(rows, generator=draw)
        assert hash_of_bits(values[order.to(DEVICE)]) != before
    assert hash_of_bits(values.flip(0)) != before
    assert hash_of_bits(values.flip(1)) != before
    assert hash_of_bits(values.roll(1)) != before
    few = torch.zeros(64, dtype=dtype, device=DEVICE)  # of which many sums are alike
    found = set()
    for place in range(63):
        few.zero_()[place : place + 2] = 1
        found.add(int(hash_of_bits(few)))
    assert len(found) == 63


def test_microbatches_in_another_order_are_another_step():
    one, other = (hash_of_bits(values_of(100, torch.float32, seed)) for seed in (3, 4))
    start = torch.zeros((), dtype=torch.int64, device=DEVICE)
    assert chained(chained(start.clone(), one), other) != chained(chained(start.clone(), other), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_no_more_than_twice_as_long_as_a_sum_of_the_bits(dtype):
    values = values_of(1 << 22, dtype)

    def quickest(work) -> float:
        found = []
        for _ in range(5):
            started = time.perf_counter()
            int(work())
            found.append(time.perf_counter() - started)
        return min(found)

    assert quickest(lambda: hash_of_bits(values)) <= 2 * quickest(lambda: bits_of(values).sum(dtype=torch.int64))


def test_it_is_deterministic_and_says_so():
    values = values_of(5 * ROW, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert hash_of_bits(values) == hash_of_bits(values)
    finally:
        torch.use_deterministic_algorithms(False)
