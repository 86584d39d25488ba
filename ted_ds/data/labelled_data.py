"""A labelled set, for training and held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.labelled_stream import LabelledStream
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import DataListing, Listing, Record
from ted_ds.data.rows import RowReader, names_of, refuse_empty, refuse_empty_apart
from ted_ds.data.samples import Example, LabelledRows, Sample, empty_text_fault
from ted_ds.data.step_division import StepDivision
from ted_ds.data.tokenizers import ends_when_loaded
from ted_ds.errors import DataError

ROWS_AT_ONCE = 1024
"""Of a labelled set, read and tokenised together."""


class LabelledData:
    """A labelled set, held in memory."""

    start = None
    """Texts are read as the tokenizer's own encode does."""

    def __init__(
        self,
        data: Data,
        rows: LabelledRows,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
    ) -> None:
        """Read, check and tokenise every row.

        Raises:
            DataError: A label is wrong, too many rows are, or a split is empty.
        """
        self.text_ends = ends_when_loaded(tokenizer, None, pairs=rows.num_texts != 1).in_words
        self._reader = RowReader(data, rows.columns, of_words=rows.of_words, num_texts=rows.num_texts)
        self._data, self._rows, self._tokenizer = data, rows, tokenizer
        kept: list[Sample] = []
        self._num_examples = 0
        heldout: list[Sequence[Sample]] = []
        for source in listing.train:
            for text, samples in self._examples(source):
                if listing.evaluation is None and is_heldout(text, data.heldout_fraction):
                    heldout.append(samples)
                else:
                    kept += (replace(sample, facts=None) for sample in samples)
                    self._num_examples += 1
        heldout += (samples for source in listing.evaluation or () for _, samples in self._examples(source))
        apart = {
            name: [samples for source in sources for _, samples in self._examples(source)]
            for name, sources in listing.apart.items()
        }
        self._reader.judge(is_complete=True)
        self.bad_records = self._reader.bad
        refuse_empty(data, kept, heldout)
        refuse_empty_apart(data, apart)
        places = {"data.evaluation": data.evaluation or data.train}
        places |= {f"data.apart.{name}": sources for name, sources in (data.apart or {}).items()}
        for (place, sources), examples in zip(places.items(), (heldout, *apart.values()), strict=True):
            if all(sample.label is None for samples in examples for sample in samples):
                raise DataError(
                    f"{names_of(sources)}: no held-out row has a label to be scored by; give {place} rows with labels"
                )
        self.apart = {name: [*itertools.chain(*examples[:max_heldout])] for name, examples in apart.items()}
        self.train = [replace(sample, index=index) for index, sample in enumerate(kept)]
        self.heldout = [*itertools.chain(*heldout[:max_heldout])]
        self.num_unlabelled = sum(sample.label is None for sample in self.train)

    @property
    def _all(self) -> Iterator[Sample]:
        return itertools.chain(self.train, self.heldout, *self.apart.values())

    @property
    def last_token_ids(self) -> frozenset[int]:
        """The ids of the last tokens of all texts, at which decoders are read."""
        return frozenset(sample.input_ids[-1] for sample in self._all)

    @property
    def has_token_types(self) -> bool:
        """Whether its examples say which text of a pair each token is of."""
        return any(sample.token_types is not None for sample in self._all)

    @property
    def has_labels(self) -> bool:
        """Whether there is any to learn from."""
        return self.num_unlabelled < len(self.train)

    def describe(self, _world_size: int) -> str:
        """How much there is."""
        without = f", {self.num_unlabelled} of them without a label" if self.num_unlabelled else ""
        num_cut = sum(sample.num_cut for sample in self.train)
        cut = (
            f"; {num_cut:,} labels are of words that were cut off, or that are nothing to the tokenizer"
            if num_cut
            else ""
        )
        several = f" in {len(self.train)} sequences" if self._num_examples < len(self.train) else ""
        return f"{self._num_examples} training examples{several}{without}, held by every rank{cut}"

    def stream(
        self,
        collate: Collator,
        division: StepDivision,
        *,
        seed: int,
        num_workers: int,  # noqa: ARG002 - as the others
        timeout_s: float,  # noqa: ARG002 - as the others
        state: Mapping[str, Any] | None = None,
    ) -> LabelledStream:
        """This rank's microbatches of each step, from the beginning or from a state on; nothing is read ahead."""
        return LabelledStream(
            self.train,
            collate,
            division,
            seed=seed,
            grouping_window_steps=self._data.length_grouping.window_steps,
            state=state,
        )

    def _examples(self, source: Listing) -> Iterator[tuple[str, Sequence[Sample]]]:
        """The examples of a source: their texts, and the samples of each; those without a token are bad records."""
        rows, records = self._rows, self._reader.rows(source)
        columns = rows.columns
        while chunk := list(itertools.islice(records, ROWS_AT_ONCE)):
            right: list[tuple[Record, Example]] = []
            for record in chunk:
                for example in self._read(record):
                    fault = example.fault or empty_text_fault(columns, example.texts)
                    if fault is None:
                        right.append((record, example))
                    else:
                        self._reader.skip(record, fault)
            encoded = rows.encode(self._tokenizer, [example for _, example in right])
            for (record, example), samples in zip(right, encoded, strict=True):
                if isinstance(samples, str):
                    self._reader.skip(record, samples)
                elif not all(sample.input_ids for sample in samples):
                    what = f"column {columns[0]!r} holds {example.text!r:.20}"
                    self._reader.skip(record, f"{what}, of which the tokenizer makes no token")
                else:
                    yield example.whole_text, samples

    def _read(self, record: Record) -> Sequence[Example]:
        read = self._rows.read(record.row, where=record.place, declared=dict(record.file.class_names))
        self._reader.count_more(max(len(read), 1) - 1)
        return read
