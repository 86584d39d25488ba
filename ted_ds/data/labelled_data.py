"""A labelled set, for training and held out."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data
from ted_ds.data.cleaning import HeldoutTexts, is_heldout
from ted_ds.data.labelled_stream import LabelledStream
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import DataListing, Listing, Record
from ted_ds.data.rows import RowReader, names_of, refuse_empty, refuse_empty_beside, refuse_empty_transfer
from ted_ds.data.samples import BadRow, Example, LabelledRows, Rows, Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.tokenizers import ends_when_loaded
from ted_ds.data.transfer import TextsAlone, Transfer, share_of
from ted_ds.data.two_tokenizers import Encoded, paired, read_by
from ted_ds.errors import DataError, counted

ROWS_AT_ONCE = 1024
"""Of a labelled set, read and tokenised together."""
FEWEST_TO_DOUBT = 16
"""Examples of which it is no accident that they have one label."""


class LabelledData:
    """A labelled set, held in memory."""

    start = None
    """Texts are read as the tokenizer's own encode does."""
    template_sha256: str | None = None
    """Of the chat template that texts are written by."""

    def __init__(
        self,
        data: Data,
        rows: LabelledRows,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Read, check and tokenise every row; by a tokenizer of the teacher's own, too, where there is one.

        Raises:
            DataError: A label is wrong, too many rows are, or a split is empty.
        """
        self.text_ends = ends_when_loaded(tokenizer, None, pairs=rows.takes_pairs).in_words
        self._reader = RowReader(data, rows.columns, of_words=rows.of_words, num_texts=rows.num_texts)
        self._data, self._rows, self._tokenizer = data, rows, tokenizer
        self._teacher_tokenizer = teacher_tokenizer
        if teacher_tokenizer is not None:
            ends = ends_when_loaded(teacher_tokenizer, None, pairs=rows.takes_pairs).in_words
            self.text_ends = f"to the student {self.text_ends}; to the teacher {ends}"
        self.counted: Counter[str] = Counter()
        self.num_beyond = 0
        """Examples of which nothing is left to learn within the longest sequence."""
        self._scored = HeldoutTexts(data.heldout_fraction if listing.evaluation is None else 0.0)
        kept: list[Sample] = []
        self._num_examples = 0
        heldout: list[Sequence[Sample]] = []
        for source in listing.train:
            for text, samples in self._examples(source, rows):
                if listing.evaluation is None and is_heldout(text, data.heldout_fraction):
                    self._scored.add(text)
                    heldout.append(samples)
                else:
                    kept += (replace(sample, facts=None) for sample in samples)
                    self._num_examples += 1
        if self.num_beyond and not kept:
            raise DataError(
                f"{names_of(data.train)}: of all {counted(self.num_beyond, 'row')} that could be used, nothing is "
                "left to learn "
                "within task.max_length tokens; raise it"
            )
        heldout += self._read_scored(listing.evaluation or ())
        beside = {name: self._read_scored(sources) for name, sources in listing.beside.items()}
        self.num_transfer_heldout = 0
        """Texts of ``data.transfer`` that are left out for being held out."""
        transfer = self._read_transfer(listing)
        self._reader.judge(is_complete=True)
        self.bad_records = self._reader.bad
        refuse_empty(data, kept, heldout)
        refuse_empty_beside(data, beside)
        refuse_empty_transfer(data, transfer, num_heldout=self.num_transfer_heldout)
        by_place = {data.beside[name].place: examples for name, examples in beside.items()}
        for place, examples in {data.heldout_key: heldout, **by_place}.items():
            if all(sample.label is None for samples in examples for sample in samples):
                raise DataError(
                    f"{names_of(data.parts.get(place, data.train))}: no held-out row has a label to be scored by; give "
                    f"data.{place} rows with labels"
                )
        self.beside = {
            name: [*itertools.chain(*examples[: data.beside[name].most(max_heldout)])]
            for name, examples in beside.items()
        }
        """What is scored at the end alone, each set by itself."""
        self.train = [replace(sample, index=index) for index, sample in enumerate(kept)]
        self.transfer = [replace(sample, index=index) for index, sample in enumerate(transfer, len(kept))]
        """Of ``data.transfer``."""
        self.heldout = [*itertools.chain(*heldout[:max_heldout])]
        self.num_unlabelled = sum(sample.label is None for sample in self.train)

    @property
    def doubt(self) -> str | None:
        """What is odd about what is scored, the first examples of rows that may be sorted; None for nothing."""
        scored, learned = (
            {one.label for one in samples if isinstance(one.label, int)} for samples in (self.heldout, self.train)
        )
        if len(scored) != 1 or len(learned) < 2 or len(self.heldout) < FEWEST_TO_DOUBT:
            return None
        return (
            f"all {len(self.heldout):,} held-out examples that are scored have one label ({next(iter(scored))}, from 0 "
            f"on), those to learn from have {len(learned)}: a model that always says it would be right. The first "
            "evaluation.max_examples are scored; raise it, or mix the rows of the file"
        )

    @property
    def learned(self) -> list[Sample]:
        """All that Stage II learns from, in the order of their ``index``."""
        return [*self.train, *self.transfer]

    @property
    def is_read_twice(self) -> bool:
        """Whether the teacher's own tokenizer has read it, too."""
        return self._teacher_tokenizer is not None

    @property
    def _all(self) -> Iterator[Sample]:
        """What models read of all examples."""
        whole = itertools.chain(self.learned, self.heldout, *self.beside.values())
        return (sequence for sample in whole for sequence in sample.sequences)

    @property
    def last_token_ids(self) -> frozenset[int]:
        """The ids of the last tokens of all texts, at which decoders are read."""
        return frozenset(sample.input_ids[-1] for sample in self._all)

    @property
    def num_rows(self) -> int:
        """Training rows."""
        return len(self.train)

    @property
    def has_token_types(self) -> bool:
        """Whether its examples say which text of a pair each token is of."""
        return any(sample.token_types is not None for sample in self._all)

    @property
    def has_labels(self) -> bool:
        """Whether there is any to learn from."""
        return self.num_unlabelled < len(self.train)

    def read_by(self, sides: Sequence[str]) -> LabelledData:
        """The same set as models of these sides read it, of which each has a tokenizer of its own."""
        other = copy.copy(self)
        other.train, other.transfer, other.heldout = (
            read_by(samples, sides) for samples in (self.train, self.transfer, self.heldout)
        )
        other.beside = {name: read_by(samples, sides) for name, samples in self.beside.items()}
        return other

    def describe(self, _world_size: int) -> str:
        """How much there is."""
        without = f", {self.num_unlabelled} of them without a label" if self.num_unlabelled else ""
        num_cut = sum(sample.num_cut for sample in self.train)
        cut = (
            f"; {counted(num_cut, 'label')} of words that were cut off, or that are nothing to the tokenizer"
            if num_cut
            else ""
        )
        several = f" in {counted(len(self.train), 'sequence')}" if self._num_examples < len(self.train) else ""
        how_many = f"{counted(self._num_examples, 'training example')}{several}{without}"
        return f"{how_many}, held by every rank{cut}{self._describe_transfer()}"

    def _describe_transfer(self) -> str:
        if not self.transfer:
            return ""
        share = self._data.transfer_share
        how = "as they come among all texts" if share == "size" else f"{share:g} of each step"
        left_out = f"; {self.num_transfer_heldout:,} more are held out: left out" if self.num_transfer_heldout else ""
        return f"; {counted(len(self.transfer), 'transfer text')} for Stage II, {how}{left_out}"

    def stream(
        self,
        collate: Collator,
        division: StepDivision,
        *,
        seed: int,
        num_workers: int,  # noqa: ARG002 - as the others
        timeout_s: float,  # noqa: ARG002 - as the others
        state: Mapping[str, Any] | None = None,
        with_transfer: bool = False,
    ) -> LabelledStream:
        """This rank's microbatches of each step, from the beginning or from a state on; nothing is read ahead.

        ``with_transfer`` mixes in the texts of ``data.transfer``.
        """
        share, mixes = self._data.transfer_share, with_transfer and bool(self.transfer)
        has_size = isinstance(share, str)
        return LabelledStream(
            self.learned if mixes and has_size else self.train,
            collate,
            division,
            seed=seed,
            grouping_window_steps=self._data.length_grouping.window_steps,
            state=state,
            transfer=None if has_size or not mixes else Transfer(self.transfer, share_of(share)),
        )

    def _read_scored(self, sources: Sequence[Listing]) -> list[Sequence[Sample]]:
        """The examples of held-out sources, whose texts are noted."""
        found: list[Sequence[Sample]] = []
        for source in sources:
            for text, samples in self._examples(source, self._rows):
                self._scored.add(text)
                found.append(samples)
        return found

    def _read_transfer(self, listing: DataListing) -> list[Sample]:
        """The texts of ``data.transfer`` that are not scored, once those are known."""
        found: list[Sample] = []
        of_task = self._rows.columns[: self._rows.num_texts]
        for given, source in zip(self._data.transfer or (), listing.transfer, strict=True):
            for text, samples in self._examples(source, TextsAlone(given.text_columns(of_task))):
                if self._scored.has(text):
                    self.num_transfer_heldout += 1
                else:
                    found += samples
        return found

    def _examples(self, source: Listing, rows: Rows) -> Iterator[tuple[str, Sequence[Sample]]]:
        """The examples of a source as ``rows`` reads them: their texts, and the samples of each.

        Those without a token are bad records.
        """
        columns = self._columns(source, rows)
        records = self._reader.rows(source, columns)
        while chunk := list(itertools.islice(records, ROWS_AT_ONCE)):
            right: list[tuple[Record, Example]] = []
            for record in chunk:
                for example in self._read(rows, record):
                    fault = example.fault(columns)
                    if fault is None:
                        right.append((record, example))
                    else:
                        self._reader.skip(record, fault)
            encoded = self._encode([example for _, example in right])
            for (record, example), samples in zip(right, encoded, strict=True):
                if isinstance(samples, str):
                    self._reader.skip(record, samples)
                elif not samples:
                    self.num_beyond += 1
                elif whose := _without_tokens(samples):
                    what = f"column {columns[0]!r} holds {example.text!r:.20}"
                    self._reader.skip(record, f"{what}, of which {whose} makes no token")
                else:
                    self.counted.update(rows.counted(example.label))
                    yield example.whole_text, samples

    def _columns(self, source: Listing, rows: Rows) -> Sequence[str]:  # noqa: ARG002 - others have columns by source
        """What is read of the rows of a source."""
        return rows.columns

    def _encode(self, examples: Sequence[Example]) -> Encoded:
        own = self._rows.encode(self._tokenizer, examples)
        if self._teacher_tokenizer is None:
            return own
        return [*paired(own, self._rows.encode(self._teacher_tokenizer, examples))]

    def _read(self, rows: Rows, record: Record) -> Sequence[Example]:
        try:
            read = rows.read(record.row, where=record.place, declared=dict(record.file.class_names))
        except BadRow as error:
            self._reader.skip(record, str(error))
            return ()
        self._reader.count_more(max(len(read), 1) - 1)
        return read


def _without_tokens(samples: Sequence[Sample]) -> str | None:
    """Whose tokenizer makes no token of a sample; None where all have some."""
    if not all(sample.input_ids for sample in samples):
        return "the tokenizer"
    of_teacher = [sample.of_teacher for sample in samples if sample.of_teacher is not None]
    return None if all(sample.input_ids for sample in of_teacher) else "the teacher's tokenizer"
