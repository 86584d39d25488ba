"""Filling a cache from what rows of data hold of a teacher's predictions: each rank reads extents of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ted_ds.assembly.assembly import Assembly
from ted_ds.config.kept_rows import KeptRows
from ted_ds.config.redaction import without_secrets
from ted_ds.data.chat_data import ChatData
from ted_ds.data.loader import checksum
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.listing import Listing, describe_position, read_extent
from ted_ds.data.reading.records import START
from ted_ds.data.samples import BadRow, Sample
from ted_ds.data.sources import is_remote
from ted_ds.data.token_rows import TokenRow, columns_of, key_of, read_tokens
from ted_ds.errors import DataError
from ted_ds.teacher_cache.axolotl import OfAxolotl
from ted_ds.teacher_cache.distillkit import SETTINGS_FILE, OfDistillKit, read_compression
from ted_ds.teacher_cache.given_predictions import (
    ReadsPredictions,
    UnreadableRow,
    Wanted,
    hits,
    seem_shifted,
    taken,
)
from ted_ds.teacher_cache.parts import NOTHING_LOST, Part
from ted_ds.teacher_cache.token_record import Answer, TokenRecord

MOST_NAMED = 10
"""Rows that are wrong, in one message."""
ROWS_TO_TRY = 64
"""Of the first, before anything is written."""


@dataclass(frozen=True)
class FoundRow:
    """A row with predictions, and the samples that were made of it and its copies."""

    samples: Sequence[Sample]
    tokens: TokenRow
    where: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class TeacherRows:
    """The rows of a run, and how their predictions are read."""

    data: ChatData
    reads: ReadsPredictions
    wanted: Wanted
    encode: Callable[[Any, Sequence[TokenRow]], Sequence[Sequence[Sample] | str]]
    """Makes samples of rows of tokens by a tokenizer, as the data did."""
    tokenizer: Any
    max_bytes: int
    content: Mapping[str, Any]
    """What decides what they hold, as JSON."""

    def find(self, known: Collection[int], rank: int, num_ranks: int) -> Iterator[FoundRow]:
        """A rank's share of what is learned from, in file order, without ``known`` samples.

        Rows that are held out, or that cannot be used, were counted when their tokens were read.
        """
        waiting: dict[bytes, list[Sample]] = {}
        for sample in self.data.train:
            if sample.index not in known:
                waiting.setdefault(key_of(sample), []).append(sample)
        for listing in self.data.listing.train:
            extents = listing.extents()
            for number in range(rank, len(extents), num_ranks):
                if waiting:
                    yield from self._of_extent(listing, extents[number], waiting)

    def _of_extent(self, listing: Listing, extent: Extent, waiting: dict[bytes, list[Sample]]) -> Iterator[FoundRow]:
        columns = columns_of(listing, self.reads.columns)
        for item in read_extent(listing, extent, START, columns, max_bytes=self.max_bytes, num_texts=0):
            try:
                tokens = read_tokens(item.row) if item.fault is None else None
            except BadRow:
                tokens = None
            (samples,) = self.encode(self.tokenizer, [tokens]) if tokens is not None else ((),)
            if tokens is None or isinstance(samples, str) or not samples:
                continue
            own = waiting.pop(key_of(samples[0]), None)
            if own is not None:
                where = f"{without_secrets(extent.url)}: {describe_position(extent, item.start, listing)}"
                yield FoundRow(own, tokens, where, item.row)

    def look(self) -> str | None:
        """Read the first rows, as all will be.

        Returns:
            What is doubtful in them: whether they are of other tokens than the recipe says.

        Raises:
            DataError: Some cannot be used.
        """
        sums, faults = np.zeros(3, int), Faults()
        for found in itertools.islice(self.find((), 0, 1), ROWS_TO_TRY):
            with faults.of(found):
                given = self.reads(found.row)
                sums += hits(given, found.tokens, found.samples[0], self.wanted)
                taken(given, found.tokens, found.samples[0], self.wanted)
        here, elsewhere, count = sums.tolist()
        if not seem_shifted(here, elsewhere, count):  # else it is why something is missing, if it is
            faults.refuse()
            return None
        other = "own" if self.wanted.rows.row_is_of == "next" else "next"
        remedy = "make the data anew" if self.wanted.rows.format == "distillkit" else f"use row_is_of: {other}"
        return (
            f"teacher.cache.rows: of {count:,} tokens in the first rows {here:,} are among the ids that are kept of "
            f"them, and {elsewhere:,} among those one place {'on' if other == 'own' else 'before'}: the predictions "
            f"look as if they were of the token {'that stands there' if other == 'own' else 'behind'}; {remedy}"
        )


class Faults:
    """What is wrong with rows, to be named together."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._where = ""

    @property
    def are_many(self) -> bool:
        """Whether there is no need to look for more."""
        return len(self._found) >= MOST_NAMED

    def of(self, row: FoundRow) -> Faults:
        """Note what is wrong with a row."""
        self._where = row.where
        return self

    def __enter__(self) -> None:
        """Begin with it."""

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        """End with it."""
        if isinstance(error, UnreadableRow):
            self._found.append(f"{self._where}: {error}")
        return isinstance(error, UnreadableRow)

    def refuse(self) -> None:
        """Name them.

        Raises:
            DataError: There are some.
        """
        if self._found:
            raise DataError("\n".join(self._found))


class RowReader:
    """This rank's questions, and the answers to them: both are in the rows."""

    lost = NOTHING_LOST
    """See :class:`ted_ds.teacher_cache.asking.Ask`: nothing is known of the whole."""

    def __init__(self, rows: TeacherRows, record: TokenRecord, done: Collection[Part], build: Assembly) -> None:
        known = {int(sample) for part in done for sample in part.rows[:, 0]}
        self._rows, self._record, self._size = rows, record, build.recipe.evaluation.micro_batch_size
        self._found = rows.find(known, build.world.rank, build.world.size)
        self.rounds = -(-(len(rows.data.train) - len(known)) // self._size)
        """At most, if all of them were this rank's."""
        self.counts = {0: len(rows.data.train)}
        """See :class:`ted_ds.teacher_cache.questions.Questions`."""
        self._answers: dict[int, bytes] = {}

    def next(self) -> list[Sample]:
        """See :class:`ted_ds.teacher_cache.questions.Questions`.

        Raises:
            DataError: Predictions cannot be used.
        """
        samples, faults = list[Sample](), Faults()
        for found in self._found:
            with faults.of(found):
                answer = self._answer(found)
                samples += found.samples
                self._answers |= dict.fromkeys((one.index for one in found.samples), answer)
            if faults.are_many or len(samples) >= self._size:
                break
        faults.refuse()
        return samples

    def _answer(self, found: FoundRow) -> bytes:
        sample = found.samples[0]
        given = taken(self._rows.reads(found.row), found.tokens, sample, self._rows.wanted)
        ids, logs = torch.from_numpy(given.ids), torch.from_numpy(given.logs)
        return self._record.pack(Answer(ids, logs, torch.zeros(0, 0, 0), 0.0, checksum(sample.input_ids)))

    def __call__(self, samples: list[Sample]) -> list[bytes]:
        """See :class:`ted_ds.teacher_cache.asking.Ask`."""
        return [self._answers.pop(sample.index) for sample in samples]

    def left(self) -> None:
        """See :class:`ted_ds.teacher_cache.questions.Questions`: what is written says it."""

    def close(self) -> None:
        """Nothing is open."""


def rows_of(build: Assembly, rows: KeptRows, num_kept: int) -> TeacherRows:
    """What the rows of a run hold.

    Raises:
        ConfigError: More ids of a prediction are asked for than they have.
        DataError: What says how they are packed cannot be read.
    """
    data, recipe = build.data, build.recipe
    assert isinstance(data, ChatData)
    assert build.num_shared_ids is not None
    content = {**rows.deciding_values(), "files": [one.identity() for one in data.listing.train]}
    reads: ReadsPredictions = OfAxolotl()
    if rows.format == "distillkit":
        reads = OfDistillKit(read_compression(rows.compression or _settings_beside(data.listing.train)))
        content["compression"] = reads.compression.model_dump(mode="json")
    collate = build.collate.of_completions
    wanted = Wanted(
        rows,
        num_kept,
        build.num_shared_ids,
        recipe.distill.temperature,
        of_completions=collate is not None and collate.predictions,
    )
    max_bytes = int(recipe.data.cleaning.max_document_mib * 2**20)
    encode: Any = build.kind
    return TeacherRows(data, reads, wanted, encode.encode, build.tokenizers["student"], max_bytes, content)


def _settings_beside(sources: Sequence[Listing]) -> Path:
    """DistillKit's settings, where it puts them.

    Raises:
        DataError: They are not there.
    """
    (first, *_) = (file.url for file in sources[0].files)
    folders = [] if is_remote(first) else [*Path(first.removeprefix("file://")).absolute().parents][:2]
    found = next((folder / SETTINGS_FILE for folder in folders if (folder / SETTINGS_FILE).is_file()), None)
    if found is None:
        raise DataError(
            f"{sources[0].name}: no {SETTINGS_FILE} in the folder of its files or in the one above, which says how "
            "predictions are packed; give it as teacher.cache.rows.compression"
        )
    return found
