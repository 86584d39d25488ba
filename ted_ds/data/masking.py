"""Which tokens of a sequence a masked language model predicts, and what it reads in their place; without torch.

As in BERT (Devlin et al. 2019, section 3.1), but drawn anew each time a sequence is made (as in RoBERTa, Liu et al.
2019, section 4.1), by nothing but what the sequence is called: ranks, microbatches and stops make no difference.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import models

from ted_ds.config.tasks import Masking
from ted_ds.data.packing import PackedSequence, predicts_something
from ted_ds.data.samples import UNLABELLED, Sample
from ted_ds.data.stream.order import hash_of
from ted_ds.errors import ConfigError
from ted_ds.models.tokenizer_traits import TokenizerTraits, as_json

MARK_OF_BYTES = "Ġ"
"""The space before a word, in tokens that write bytes as letters (GPT-2's)."""


@dataclass(frozen=True)
class Masker:
    """Masks sequences of one tokenizer; can be sent to another process."""

    settings: Masking
    mask_id: int
    is_ordinary: np.ndarray = field(compare=False)
    """By id: whether it is a token of text, and not a special one, nor none at all."""
    begins_word: np.ndarray | None = field(compare=False)
    """By id: whether a word begins with it; None where tokens are chosen one by one."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the masks, as JSON, beside the tokenizer."""
        return self.settings.model_dump()

    def __call__(self, ids: Sequence[int], *words: object) -> tuple[list[int], list[int]] | None:
        """What the model reads in the place of a sequence, and the label of each token: its id where it is predicted.

        Args:
            ids: Of the sequence.
            words: What it is called, which decides what is masked.

        Returns:
            None where it has no token of text.
        """
        tokens = np.asarray(ids)
        generator = np.random.Generator(np.random.PCG64(hash_of(*words)))
        ordinary = self.is_ordinary[tokens]
        if not ordinary.any():
            return None
        unit = self._units(tokens, ordinary)
        num_units = int(unit[-1]) + 1
        # so that the expected share is that of the settings, whatever the length
        count = int(self.settings.probability * num_units + generator.random())
        is_chosen = np.zeros(num_units, dtype=bool)
        is_chosen[generator.permutation(num_units)[: max(count, 1)]] = True
        places = np.flatnonzero(ordinary & is_chosen[unit])
        labels, read = np.full(len(tokens), UNLABELLED), tokens.copy()
        labels[places] = tokens[places]
        draw = generator.random(len(places))
        drawn_ids = self._vocabulary[generator.integers(len(self._vocabulary), size=len(places))]
        to_mask, to_random = self.settings.to_mask, self.settings.to_mask + self.settings.to_random
        read[places] = np.select([draw < to_mask, draw < to_random], [self.mask_id, drawn_ids], tokens[places])
        return read.tolist(), labels.tolist()

    @functools.cached_property
    def _vocabulary(self) -> np.ndarray:
        """The ids of tokens of text."""
        return np.flatnonzero(self.is_ordinary)

    def _units(self, tokens: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
        """The number, from 0, of the token or word of text that each token is of; any for special tokens."""
        begins = ordinary
        if self.begins_word is not None:
            behind_special = np.concatenate([[True], ~ordinary[:-1]])
            begins = ordinary & (self.begins_word[tokens] | behind_special)
        return np.maximum(begins.cumsum() - 1, 0)


def make_masker(tokenizer: TokenizerTraits, settings: Masking) -> Masker:
    """What masks sequences of a tokenizer.

    Raises:
        ConfigError: It has no mask token, or does not tell where words begin, where whole ones are wanted.
    """
    mask_id = tokenizer.role_id("mask_token")
    if mask_id is None:
        raise ConfigError(
            "its tokenizer has no mask token to hide others behind; use a model that was trained with one, or name "
            "one of its tokens as mask_token in tokenizer_config.json"
        )
    size = max(tokenizer.vocabulary.values()) + 1
    is_ordinary = np.zeros(size, dtype=bool)
    is_ordinary[[*tokenizer.vocabulary.values()]] = True
    special = {*tokenizer.roles.values(), *(token for token, flags in tokenizer.flags.items() if flags["special"])}
    is_ordinary[[tokenizer.vocabulary[token] for token in special if token in tokenizer.vocabulary]] = False
    return Masker(settings, mask_id, is_ordinary, _beginnings(tokenizer, size) if settings.whole_words else None)


def make_sample(
    sequence: PackedSequence, *words: object, isolate_documents: bool, masker: Masker | None, index: int = -1
) -> Sample | None:
    """A packed sequence as the models take it, masked where they are not to see all; None where nothing is predicted.

    ``words`` are what it is called, for its masks, and ``index`` is its place among the sequences of a stream.
    """
    ids, lengths = sequence
    if masker is None:
        predicts = predicts_something(sequence, isolate_documents=isolate_documents)
        return Sample(ids, document_lengths=lengths, index=index) if predicts else None
    masked = masker(ids, *words)
    return None if masked is None else Sample(masked[0], masked[1], lengths, index)


def _beginnings(tokenizer: TokenizerTraits, size: int) -> np.ndarray:
    """By id, whether a word begins with it."""
    backend = tokenizer.backend
    kind: Any = None if backend is None else backend.model
    if isinstance(kind, models.WordLevel):
        return np.ones(size, dtype=bool)
    going_on: str | None = getattr(kind, "continuing_subword_prefix", None)
    steps = [] if backend is None else [step for step in (backend.pre_tokenizer, backend.normalizer) if step]
    marks = tuple({mark for step in steps for mark in _marks(as_json(step))})
    if not going_on and not marks:
        raise ConfigError(
            "its tokenizer does not tell where words begin (its tokens have neither a prefix within words, as ##, nor "
            "a mark of the space before), which task.masking.whole_words asks for; remove that"
        )
    begins = np.zeros(size, dtype=bool)
    for token, index in tokenizer.vocabulary.items():
        if going_on:
            begins[index] = not token.startswith(going_on)
        else:  # punctuation has no space before it, and is no part of the word before
            begins[index] = token.startswith((*marks, *string.punctuation))
    return begins


def _marks(step: Mapping[str, Any]) -> Iterator[str]:
    """What stands for the space before a word, by a step of a tokenizer."""
    for one in (*step.get("pretokenizers", ()), *step.get("normalizers", ())):
        yield from _marks(one)
    if step["type"] == "ByteLevel":
        yield MARK_OF_BYTES
    if step["type"] == "Metaspace":
        yield step["replacement"]
    if step["type"] == "Replace" and step["pattern"] == {"String": " "}:
        yield step["content"]
