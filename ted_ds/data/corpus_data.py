"""A corpus: documents, streamed and packed for training, and held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ted_ds.config.data import Data
from ted_ds.config.tasks import DocumentTask, Masking
from ted_ds.data.loader import Collator
from ted_ds.data.masking import Masker, make_masker, make_sample
from ted_ds.data.packing import pack
from ted_ds.data.reading.listing import DataListing, Listing
from ted_ds.data.rows import Part, RowReader, refuse_empty, refuse_empty_beside
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.corpus_stream import CorpusStream
from ted_ds.data.stream.documents import LaneDocuments
from ted_ds.data.stream.lane import make_units
from ted_ds.data.stream.settings import StreamSettings, source_names, stream_settings
from ted_ds.data.stream.workers import LaneWorkers
from ted_ds.data.tokenizers import DocumentEncoder, ends_when_loaded, traits_of
from ted_ds.errors import ConfigError, DataError, counted

NUM_TRIED_DOCUMENTS = 16
LONGEST_SHOWN = 60


class CorpusData:
    """Documents, streamed and packed."""

    last_token_ids: frozenset[int] = frozenset()
    """None: no token stands for a whole text."""
    has_labels = True
    """Its tokens are."""
    num_rows = None
    """Its sequences are made as it is read."""
    train: Sequence[Sample] = ()
    """So they are not held."""
    transfer: Sequence[Sample] = ()
    """Only rows without a label are."""
    has_token_types = False
    """A document is no pair."""
    template_sha256 = None
    """Documents are read as they are."""
    doubt = None
    """Of labels that are tokens there is none."""

    def __init__(
        self,
        data: Data,
        task: DocumentTask,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        *,
        max_heldout: int,
    ) -> None:
        """Pack the held-out sequences, and read the first document of each source.

        Raises:
            ConfigError: The tokenizer lacks what the task asks of it.
            DataError: A source is wrong, too many records are, or a split is empty.
        """
        self._data, self._task, self._listing = data, task, listing
        self._encode = DocumentEncoder(tokenizer)
        self.start, (self._separator,), self.text_ends = ends_when_loaded(
            tokenizer, task.document_start, own_end=task.own_document_ends
        )
        self._masker = None if task.masked is None else _masker_of(tokenizer, task.masked)
        self._refuse_unreadable()
        reader = self._reader()
        sources = listing.train if listing.evaluation is None else listing.evaluation
        part: Part = "heldout" if listing.evaluation is None else "all"
        self.heldout = self._some(reader, sources, part, max_heldout)
        self.beside = {
            name: self._some(reader, own, "all", data.beside[name].most(max_heldout))
            for name, own in listing.beside.items()
        }
        """What is scored at the end alone, each set by itself."""
        reader.judge(is_complete=False)
        self.bad_records = reader.bad
        if not self.heldout and len(sources) == 1:
            self._refuse_one_document(sources[0])
        refuse_empty(data, [None], self.heldout)
        refuse_empty_beside(data, self.beside)

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
        settings = stream_settings(
            self._data,
            self._task,
            self._listing.train,
            seed=seed,
            num_lanes=num_lanes,
            separator=self._separator,
            start=self.start,
        )
        return replace(settings, masker=self._masker)

    def stream(
        self,
        collate: Collator,
        division: StepDivision,
        *,
        seed: int,
        num_workers: int,
        timeout_s: float,
        state: Mapping[str, Any] | None = None,
        with_transfer: bool = False,  # noqa: ARG002 - as the others
    ) -> CorpusStream:
        """This rank's microbatches of each step, from the beginning or from a state on."""
        return CorpusStream(
            self.settings(seed=seed, num_lanes=division.global_batch_size),
            self._encode,
            collate,
            division,
            num_workers=num_workers,
            timeout_s=timeout_s,
            state=state,
        )

    def lanes(
        self,
        lanes: Sequence[int],
        states: Mapping[int, dict[str, Any]],
        *,
        seed: int,
        num_lanes: int,
        num_workers: int,
        timeout_s: float,
    ) -> LaneWorkers:
        """Some lanes of that stream by themselves, each from its own state on."""
        settings = self.settings(seed=seed, num_lanes=num_lanes)
        return LaneWorkers(settings, self._encode, lanes, states, num_workers=num_workers, timeout_s=timeout_s)

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
                f"{source.name}: the tokenizer gives no tokens for the first {counted(len(texts), 'document')}, such "
                "as "
                f"{texts[0][:LONGEST_SHOWN]!r}; use data in the model's language and script"
            )

    def _refuse_one_document(self, source: Listing) -> None:
        """Say so where a source is held out because it is a single document."""
        first_two = list(itertools.islice(self._reader().texts(source, "all"), 2))
        if len(first_two) == 1 and self._listing.evaluation is None:
            raise DataError(
                f"{source.name}: this is one document of {len(first_two[0]):,} characters, which cannot be both "
                "trained on and held out; cut it (of a text file, documents: block or line makes many), or give "
                f"data.{self._data.heldout_key}"
            )

    def _reader(self) -> RowReader:
        # a corpus is read as a stream, too, which names a record by its position: each is listed once
        return RowReader(self._data, [self._task.text_column], by_number=False)

    def _some(self, reader: RowReader, sources: Sequence[Listing], part: Part, max_samples: int | None) -> list[Sample]:
        """Sequences to be scored on, at most so many, or all."""
        # order does not matter here, but one source must not crowd out the others: take as many from each
        per_source = None if max_samples is None else -(-max_samples // len(sources))
        packed = (self._packed(reader.texts(source, part), index) for index, source in enumerate(sources))
        return [one for of_source in packed for one in itertools.islice(of_source, per_source)][:max_samples]

    def _packed(self, texts: Iterable[str], index: int) -> Iterator[Sample]:
        """Sequences of a source, which is known by its place among those that are scored together."""
        tokens = (self._encode([text])[0] for text in texts)
        isolate = self._task.packing.isolate_documents
        sequences = pack(tokens, length=self._task.sequence_length, separator=self._separator, start=self.start)
        for number, sequence in enumerate(sequences):
            # masked in the same way for every run, whatever its seed: scores can be compared
            sample = make_sample(sequence, "heldout", index, number, isolate_documents=isolate, masker=self._masker)
            if sample is not None:
                yield sample


def _masker_of(tokenizer: PreTrainedTokenizerBase, masking: Masking) -> Masker:
    try:
        return make_masker(traits_of(tokenizer), masking)
    except ConfigError as error:
        raise ConfigError(f"{tokenizer.name_or_path}: {error}") from error
