"""A hash of a tensor's bits, computed where the tensor is: 64 bits, the same on every kind of device.

The hash is the sum of g^i times the i-th word of 32 bits, modulo 2^64: a polynomial hash in which g is odd and 5 modulo
8. Of up to 2^31 words (8 GiB), then, these always change it:

- one changed word: g^i is odd, and the difference of two words is not 0 modulo 2^32;
- any two flipped bits: different bits of words change the sum by numbers that different powers of 2 divide; the same
  bit b of two words cancels only if g^i = +-g^j modulo 2^(64-b), so modulo 2^33, where g has the order 2^31 and -1 is
  none of its powers;
- any two words, or narrower numbers, that change places: no more than 2^31 divides their difference, and of g^n - 1 no
  more than 4 times the power of 2 in n, so 2^32.

What else changes passes by chance, about once in 2^64, and no more often than once in 2^32 where whole rows change
places; somebody who wants it to pass can make it pass. It is textbook arithmetic: the group of odd numbers modulo 2^m
(Gauss, Disquisitiones Arithmeticae, art. 90 and 91), and the lemma of lifting the exponent for g^n - 1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

MODULUS = 1 << 64
BASE = 0x9E3779B97F4A7C15
"""g: 5 modulo 8, and bits of the golden ratio otherwise."""
ROW = 1 << 15
"""Words that are weighed at a time: their weights, 256 KiB, stay in a cache."""
ROWS_ON_A_CPU, ROWS_ON_A_GPU = 8, 512
"""How many become integers of 8 bytes at once: what a cache holds, and what fills a GPU (128 MiB)."""


def hash_of_bits(values: Tensor) -> Tensor:
    """Of a tensor's bits in the order of its elements, as one integer on its device (int64, whatever its sign).

    Integers wrap around, and come to the same in whatever order they are added. The host does not wait for it.

    Args:
        values: Of any dtype and shape. It may be no more than 8 GiB for what is promised above.
    """
    flat = values.detach().contiguous().reshape(-1)
    size, device = flat.element_size(), flat.device
    if size < 4 and flat.storage_offset() * size % 4:
        flat = flat.clone()
    num_even = flat.numel() * size // 4 * 4 // size
    words = flat[:num_even].view(torch.int32)
    rest = flat[num_even:]  # less than a word
    num_rows, most = words.numel() // ROW, ROWS_ON_A_CPU if device.type == "cpu" else ROWS_ON_A_GPU
    weights, of_rows = _weights(device), _powers(pow(BASE, ROW, MODULUS), num_rows + 1, device)
    total = torch.zeros((), dtype=torch.int64, device=device)
    rows = words[: num_rows * ROW].view(num_rows, ROW)
    for first in range(0, num_rows, most):
        part = rows[first : first + most].to(torch.int64).mul_(weights).sum(1)
        total += part.mul_(of_rows[first : first + len(part)]).sum()
    last = words[num_rows * ROW :].to(torch.int64)
    total += last.mul_(weights[: last.numel()]).sum() * of_rows[num_rows]
    if rest.numel():
        left = rest.view({1: torch.uint8, 2: torch.int16}[size]).to(torch.int64)
        after = _powers(BASE, ROW + 4, device)[last.numel() : last.numel() + left.numel()]
        total += left.mul_(after).sum() * of_rows[num_rows]
    return total


def chained(total: Tensor, found: Tensor) -> Tensor:
    """The hash of what came before, in place, with one more behind it: in another order two are another hash."""
    return total.mul_(_signed(BASE)).add_(found)


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    return _powers(BASE, ROW, device)


def _powers(base: int, count: int, device: torch.device) -> Tensor:
    """base^0, base^1, ... modulo 2^64."""
    found = torch.ones(1, dtype=torch.int64, device=device)
    while len(found) < count:
        found = torch.cat([found, found * _signed(pow(base, len(found), MODULUS))])
    return found[:count]


def _signed(value: int) -> int:
    """The integer of 64 bits with a sign that has the same bits."""
    return value - MODULUS if value >= MODULUS // 2 else value
