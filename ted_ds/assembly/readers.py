"""Whose tokenizer reads the data for which model: one for both, or each its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Padding
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Collator
from ted_ds.data.two_tokenizers import BOTH
from ted_ds.tasks.kind import AnyKind


@dataclass(frozen=True)
class Reader:
    """The data in the tokens of some models, and what makes batches of it."""

    data: LabelledData | CorpusData
    collate: Collator

    @functools.cached_property
    def last_token_ids(self) -> frozenset[int]:
        """The ids of the last tokens of all texts, at which decoders are read."""
        return self.data.last_token_ids


class Readers:
    """Gives the data to a model, or to both together, in the tokens of each.

    Where each has a tokenizer of its own, what is no set with one prediction for a text is read for the student alone.
    """

    def __init__(
        self,
        kind: AnyKind,
        padding: Padding,
        data: LabelledData | CorpusData,
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
    ) -> None:
        """Take the data as it was read by ``tokenizers``, of which each side has its own or the other's."""
        self._kind, self._padding, self._data, self._tokenizers = kind, padding, data, tokenizers
        self.are_two = tokenizers["student"] is not tokenizers["teacher"]
        self._known: dict[Sequence[str], Reader] = {}

    def has(self, side: str) -> bool:
        """Whether there is anything for a side's model to read."""
        read_twice = isinstance(self._data, LabelledData) and self._data.is_read_twice
        return side == "student" or read_twice or not self.are_two

    def of(self, *sides: str) -> Reader:
        """What models of these sides read; what goes through both together has the readings of both."""
        wanted = tuple(side for side in BOTH if side in sides) if self.are_two else BOTH
        if wanted not in self._known:
            self._known[wanted] = self._read_by(wanted)
        return self._known[wanted]

    def _read_by(self, sides: Sequence[str]) -> Reader:
        if not self.are_two:
            return Reader(self._data, self._collator("student", self._data))
        if not isinstance(self._data, LabelledData) or not self._data.is_read_twice:
            assert not {*sides} - {"student"}, "the teacher's tokenizer has read nothing"
            return Reader(self._data, self._collator("student", self._data))
        data = self._data.read_by(sides)
        if len(sides) == 1:
            return Reader(data, self._collator(sides[0], data))
        student, teacher = (self.of(side).collate for side in sides)
        return Reader(data, replace(student, of_teacher=teacher))

    def _collator(self, side: str, data: LabelledData | CorpusData) -> Collator:
        pad_id = self._tokenizers[side].pad_token_id
        assert isinstance(pad_id, int)
        return self._kind.collator(pad_id, self._padding, with_token_types=data.has_token_types)
