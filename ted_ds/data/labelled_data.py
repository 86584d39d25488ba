"""A labelled set, for training and held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data
from ted_ds.config.tasks import CausalLm, HeadTask, Task
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.corpus_data import CausalLmData
from ted_ds.data.labels import empty_text_fault, label_columns, read_label
from ted_ds.data.reading.listing import DataListing, Listing
from ted_ds.data.rows import RowReader, names_of, refuse_empty
from ted_ds.data.samples import Sample
from ted_ds.data.tokenizers import ends_when_loaded
from ted_ds.errors import DataError

ROWS_AT_ONCE = 1024
"""Of a labelled set, read and tokenised together."""


class LabelledData:
    """A labelled set, held in memory."""

    def __init__(
        self,
        data: Data,
        task: HeadTask,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
    ) -> None:
        """Read, check and tokenise every row.

        Raises:
            DataError: A label is wrong, too many rows are, or a split is empty.
        """
        self.text_ends = ends_when_loaded(tokenizer, None).in_words
        self._reader = RowReader(data, [task.text_column, *label_columns(task)])
        self._task, self._tokenizer = task, tokenizer
        splits: dict[bool, list[Sample]] = {False: [], True: []}
        for source in listing.train:
            for text, sample in self._samples(source):
                splits[listing.evaluation is None and is_heldout(text, data.heldout_fraction)].append(sample)
        kept, heldout = splits[False], splits[True]
        heldout += [sample for source in listing.evaluation or () for _, sample in self._samples(source)]
        self._reader.judge(is_complete=True)
        self.bad_records = self._reader.bad
        refuse_empty(data, kept, heldout)
        if all(sample.label is None for sample in heldout):
            raise DataError(
                f"{names_of(data.evaluation or data.train)}: no held-out row has a label to be scored by; give "
                "data.evaluation rows with labels"
            )
        self.train = [replace(sample, index=index) for index, sample in enumerate(kept)]
        self.heldout = heldout[:max_heldout]
        self.num_unlabelled = sum(sample.label is None for sample in self.train)

    @property
    def last_token_ids(self) -> frozenset[int]:
        """The ids of the last tokens of all texts, at which decoders are read."""
        return frozenset(sample.input_ids[-1] for sample in (*self.train, *self.heldout))

    def describe(self, _world_size: int) -> str:
        """How much there is."""
        without = f", {self.num_unlabelled} of them without a label" if self.num_unlabelled else ""
        return f"{len(self.train)} training examples{without}, held by every rank"

    def _samples(self, source: Listing) -> Iterator[tuple[str, Sample]]:
        """The examples of a source and their texts; those without a token are bad records."""
        task, records = self._task, self._reader.rows(source)
        while chunk := list(itertools.islice(records, ROWS_AT_ONCE)):
            texts = [record.row[task.text_column] for record in chunk]
            labels = [
                read_label(task, record.row, where=record.place, declared=dict(record.file.class_names))
                for record in chunk
            ]
            encoded: Any = self._tokenizer(texts, truncation=True, max_length=task.max_length)["input_ids"]
            for record, text, label, ids in zip(chunk, texts, labels, encoded, strict=True):
                fault = empty_text_fault(task.text_column, text)
                if fault is None and not ids:
                    fault = f"column {task.text_column!r} holds {text!r:.20}, of which the tokenizer makes no token"
                if fault is None:
                    yield text, Sample(ids, label)
                else:
                    self._reader.skip(record, fault)


TaskData = LabelledData | CausalLmData


def open_task_data(
    data: Data, task: Task, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
) -> TaskData:
    """The task's data, checked as far as it can be before training.

    Raises:
        DataError: A source or a row is wrong, or a split is empty.
    """
    if isinstance(task, CausalLm):
        return CausalLmData(data, task, tokenizer, listing, max_heldout=max_heldout)
    return LabelledData(data, task, tokenizer, listing, max_heldout=max_heldout)


def refuse_without_labels(data: Data, found: TaskData, phases: Sequence[str]) -> None:
    """Make sure that there is a label to learn from, where ``phases`` of the recipe learn from labels.

    Raises:
        DataError: No row has any.
    """
    if isinstance(found, LabelledData) and phases and found.num_unlabelled == len(found.train):
        raise DataError(
            f"{names_of(data.train)}: no row has a label, and {', '.join(phases)} would learn from labels; give some "
            "rows theirs, or leave these phases out and set distill.task_weight: 0"
        )
