"""Random order without a random generator: everything is a hash of what it is about, so any place can be entered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Element = TypeVar("Element")
HASH_BYTES = 8
NUM_ROUNDS = 6
SMALLEST_HALF_BITS = 3


def hash_of(*words: object) -> int:
    """64 bits of a hash over words, the same on every machine and for ever."""
    text = " ".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest(), "big")


def uniform(*words: object) -> float:
    """A number in [0, 1) from :func:`hash_of`."""
    return (hash_of(*words) >> 11) / 2**53


def shuffled(elements: Sequence[Element], *words: object) -> list[Element]:
    """The elements in an order that the words decide."""
    begun = hashlib.blake2b((" ".join(map(str, words)) + " ").encode(), digest_size=HASH_BYTES)

    def key(index: int) -> bytes:  # in the order of hash_of(*words, index), whose beginning is hashed only once
        ended = begun.copy()
        ended.update(str(index).encode())
        return ended.digest()

    return [elements[index] for index in sorted(range(len(elements)), key=key)]


def permuted(index: int, size: int, *words: object) -> int:
    """Where a permutation of ``range(size)`` that the words decide takes an index, without making the permutation.

    A Feistel network over the next larger power of four, walked until it lands inside (Black and Rogaway, "Ciphers
    with arbitrary finite domains", CT-RSA 2002).
    """
    half_bits = max(SMALLEST_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    key = hash_of(*words, size)
    while True:
        left, right = index >> half_bits, index & mask
        for number in range(NUM_ROUNDS):
            left, right = right, left ^ (hash_of(key, number, right) & mask)
        index = (left << half_bits) | right
        if index < size:
            return index
