"""What the rivals have in common: the fastest plain code for what their libraries leave to the user."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.contenders import Spec

DOCUMENTS_AT_ONCE = 64
"""Tokenised together."""


def encoder(spec: Spec) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids by the tokenizers library itself, without what transformers adds to each call."""
    tokenizer = Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def encoded(texts: Iterable[str], spec: Spec) -> Iterator[list[int]]:
    """The ids of each text."""
    encode, rest = encoder(spec), iter(texts)
    while some := list(itertools.islice(rest, DOCUMENTS_AT_ONCE)):
        yield from encode(some)


def packed(documents: Iterable[list[int]], spec: Spec) -> Iterator[Tensor]:
    """Batches of full sequences ``[batch, length]``."""
    held: list[int] = []
    num_tokens = spec.batch_size * spec.sequence_length
    for ids in documents:
        held += ids
        held.append(spec.end_id)
        while len(held) >= num_tokens:
            # through NumPy: torch takes a list of numbers five times as long
            yield torch.from_numpy(np.array(held[:num_tokens])).view(spec.batch_size, spec.sequence_length)
            del held[:num_tokens]


class Batches(IterableDataset):
    """Batches, wherever they are iterated."""

    def __init__(self, make: Callable[[], Iterator[Tensor]]) -> None:
        """Take what starts them."""
        self._make = make

    def __iter__(self) -> Iterator[Tensor]:
        return self._make()


def delivered(make: Callable[[], Iterator[Tensor]], spec: Spec) -> Iterator[Tensor]:
    """The batches, made in a torch worker if one is asked for; they come through shared memory."""
    if spec.num_workers == 0:
        return make()
    return iter(DataLoader(Batches(make), batch_size=None, num_workers=spec.num_workers))
