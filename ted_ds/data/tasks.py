"""The data of every kind of task, for training and held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import CausalLm, HeadTask, Task
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.labels import empty_text_fault, label_columns, read_label
from ted_ds.data.loader import Collator
from ted_ds.data.packing import pack, predicts_something
from ted_ds.data.reading.listing import DataListing, Listing
from ted_ds.data.rows import RowReader
from ted_ds.data.samples import Sample
from ted_ds.data.stream.corpus_stream import CorpusStream
from ted_ds.data.stream.documents import LaneDocuments
from ted_ds.data.stream.lane import make_units
from ted_ds.data.stream.settings import StreamSettings, source_names, stream_settings
from ted_ds.data.tokenizers import DocumentEncoder, ends_when_loaded
from ted_ds.errors import DataError

NUM_TRIED_DOCUMENTS = 16
LONGEST_SHOWN = 60
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
        _refuse_empty(data, kept, heldout)
        if all(sample.label is None for sample in heldout):
            raise DataError(
                f"{_names(data.evaluation or data.train)}: no held-out row has a label to be scored by; give "
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


class CausalLmData:
    """Documents, streamed and packed."""

    last_token_ids: frozenset[int] = frozenset()
    """None: no token stands for a whole text."""

    def __init__(
        self,
        data: Data,
        task: CausalLm,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
    ) -> None:
        """Pack the held-out sequences, and read the first document of each source.

        Raises:
            DataError: A source is wrong, too many records are, or a split is empty.
        """
        self._data, self._task, self._listing = data, task, listing
        self._encode = DocumentEncoder(tokenizer)
        self.start, (self._separator,), self.text_ends = ends_when_loaded(tokenizer, task.bos)
        self._refuse_unreadable()
        reader = self._reader()
        sources = listing.train if listing.evaluation is None else listing.evaluation
        # order does not matter here, but one source must not crowd out the others: take as many from each
        per_source = -(-max_heldout // len(sources))
        self.heldout = [s for source in sources for s in itertools.islice(self._heldout(reader, source), per_source)]
        reader.judge(is_complete=False)
        self.bad_records = reader.bad
        if not self.heldout and len(sources) == 1:
            self._refuse_one_document(sources[0])
        _refuse_empty(data, [None], self.heldout)
        self.heldout = self.heldout[:max_heldout]

    def describe(self, world_size: int) -> str:
        """The sources and their sizes, and what each rank holds of them."""
        names = source_names([source.path for source in self._data.train])
        sources = ", ".join(
            f"{name} {listing.num_bytes / 2**20:.1f} MiB"
            for name, listing in zip(names, self._listing.train, strict=True)
        )
        return (
            f"{sources}; about {self._data.shuffle_mib / world_size:.4g} MiB of text held to shuffle per rank, "
            f"workers per rank: {self._data.workers}"
        )

    def settings(self, *, seed: int, num_lanes: int) -> StreamSettings:
        """What decides the training stream with ``num_lanes`` sequences per step."""
        return stream_settings(
            self._data,
            self._task,
            self._listing.train,
            seed=seed,
            num_lanes=num_lanes,
            separator=self._separator,
            start=self.start,
        )

    def stream(
        self,
        collate: Collator,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int,
        timeout_s: float,
        state: Mapping[str, Any] | None = None,
    ) -> CorpusStream:
        """This rank's microbatches of each step, from the beginning or from a state on."""
        return CorpusStream(
            self.settings(seed=seed, num_lanes=global_batch_size),
            self._encode,
            collate,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            timeout_s=timeout_s,
            state=state,
        )

    def _refuse_unreadable(self) -> None:
        """A wrong source fails here, before anything is written."""
        settings = replace(self.settings(seed=0, num_lanes=1), shuffle_bytes=0)
        for index, (units, source) in enumerate(zip(make_units(settings), self._listing.train, strict=True)):
            next(self._reader().rows(source), None)  # knows best what is wrong with a first row
            try:
                if LaneDocuments(settings, index, 0, self._encode, units=units).next() is not None:
                    self._refuse_unknown_text(source)
                    continue
            except DataError:
                self._refuse_one_document(source)
                raise
            self._refuse_one_document(source)
            raise DataError(f"{source.name}: no documents are left to read; the files are empty or all is held out")

    def _refuse_unknown_text(self, source: Listing) -> None:
        """Documents of which nothing is left as tokens would never fill a sequence."""
        texts = list(itertools.islice(self._reader().texts(source, "all"), NUM_TRIED_DOCUMENTS))
        if texts and not any(self._encode(texts)):
            raise DataError(
                f"{source.name}: the tokenizer gives no tokens for the first {len(texts)} documents, such as "
                f"{texts[0][:LONGEST_SHOWN]!r}; use data in the model's language and script"
            )

    def _refuse_one_document(self, source: Listing) -> None:
        """Say so where a source is held out because it is a single document."""
        first_two = list(itertools.islice(self._reader().texts(source, "all"), 2))
        if len(first_two) == 1 and self._listing.evaluation is None:
            raise DataError(
                f"{source.name}: this is one document of {len(first_two[0]):,} characters, which cannot be both "
                "trained on and held out; cut it (of a text file, documents: block or line makes many), or give "
                "data.evaluation"
            )

    def _reader(self) -> RowReader:
        # a corpus is read as a stream, too, which names a record by its position: each is listed once
        return RowReader(self._data, [self._task.text_column], by_number=False)

    def _heldout(self, reader: RowReader, source: Listing) -> Iterator[Sample]:
        texts = reader.texts(source, "heldout" if self._listing.evaluation is None else "all")
        tokens = (self._encode([text])[0] for text in texts)
        isolate = self._task.packing.isolate_documents
        for sequence in pack(tokens, length=self._task.sequence_length, separator=self._separator, start=self.start):
            if predicts_something(sequence, isolate_documents=isolate):
                yield Sample(sequence[0], document_lengths=sequence[1])


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
            f"{_names(data.train)}: no row has a label, and {', '.join(phases)} would learn from labels; give some "
            "rows theirs, or leave these phases out and set distill.task_weight: 0"
        )


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.path for source in sources)


def _refuse_empty(data: Data, train: Sequence[object], heldout: Sequence[object]) -> None:
    where = _names(data.train)
    if not train:
        raise DataError(f"{where}: no training rows; the files are empty or all is held out")
    if not heldout:
        remedy = "raise data.heldout_fraction" if data.evaluation is None else "fill data.evaluation"
        raise DataError(f"{where}: no held-out rows to evaluate on; {remedy}")
