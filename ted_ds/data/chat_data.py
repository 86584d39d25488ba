"""A set of conversations, written by a chat template, one in a sequence or several."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data
from ted_ds.config.tasks import Chat
from ted_ds.data.chat_template import ChatTemplate
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.packing import Packer, Piece
from ted_ds.data.reading.listing import DataListing, Listing
from ted_ds.data.samples import LabelledRows, Rows, Sample
from ted_ds.data.token_rows import columns_of
from ted_ds.errors import counted

WINDOW = 64
"""Conversations to choose from, to fill up a sequence."""


class ChatData(LabelledData):
    """Conversations, held in memory."""

    def __init__(
        self,
        data: Data,
        rows: LabelledRows,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
        task: Chat,
        template: ChatTemplate | None,
    ) -> None:
        """Read, check, write and tokenise every conversation; put several into a sequence where the task asks for it.

        Without a ``template`` rows are tokens already.

        Raises:
            DataError: Too many rows cannot be used, or a split is empty.
        """
        self._are_tokens = template is None
        super().__init__(data, rows, tokenizer, listing, max_heldout=max_heldout)
        self.listing = listing
        self.text_ends = "tokens as they are" if template is None else template.in_words
        self.template_sha256 = None if template is None else template.sha256
        self._num_conversations = len(self.train)
        if task.pack:
            packed = packed_together(self.train, task.max_length)
            self.train = [replace(sample, index=index) for index, sample in enumerate(packed)]

    def _columns(self, source: Listing, rows: Rows) -> Sequence[str]:
        return columns_of(source) if self._are_tokens else super()._columns(source, rows)

    def describe(self, _world_size: int) -> str:
        """How many there are, in which forms, and how much of them is completion."""
        forms = ", ".join(f"{name} {number:,}" for name, number in self.counted.most_common())
        num_tokens = sum(len(sample.input_ids) for sample in self.train)
        completed = sum(num_completed(sample) for sample in self.train)
        packed = f" in {counted(len(self.train), 'sequence')}" if len(self.train) < self._num_conversations else ""
        beyond = (
            f"; {self.num_beyond:,} more are left out: nothing to learn is left of them within task.max_length"
            if self.num_beyond
            else ""
        )
        how_many = counted(
            self._num_conversations,
            *(
                ("training row of tokens", "training rows of tokens")
                if self._are_tokens
                else ("training conversation",)
            ),
        )
        return (
            f"{how_many}{packed}, held by every rank (of all rows "
            "read as "
            f"{forms}); {completed:,} of their {num_tokens:,} tokens are of completions{beyond}"
        )


def num_completed(sample: Sample) -> int:
    """Tokens of completions."""
    assert isinstance(sample.label, Sequence)
    return int(sum(sample.label[1::2]) - sum(sample.label[::2]))


def packed_together(samples: Sequence[Sample], length: int) -> Iterator[Sample]:
    """Samples of up to ``length`` tokens, as many in a sequence as fit, by best fit."""
    rest = iter(samples)

    def draw() -> Piece | None:
        sample = next(rest, None)
        return None if sample is None else Piece(sample, 0, sample.input_ids)

    packer = Packer(draw, length=length, method="best_fit", window=WINDOW)
    while pieces := packer.next():
        yield _joined([piece.origin for piece in pieces])


def _joined(samples: Sequence[Sample]) -> Sample:
    ids, lengths, spans = array("i"), [], []
    for sample in samples:
        label: Any = sample.label
        spans += [place + len(ids) for place in label]
        ids.extend(sample.input_ids)
        lengths.append(len(sample.input_ids))
    return Sample(ids, spans, document_lengths=lengths)
