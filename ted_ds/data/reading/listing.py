"""What a source consists of, listed once when a run starts, and reading it in order or from any position."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ted_ds.config.data import TEST, Data, Source
from ted_ds.config.redaction import without_secrets
from ted_ds.data.reading.bytes import compression_of
from ted_ds.data.reading.csv_rows import read_csv
from ted_ds.data.reading.described import described, with_ends
from ted_ds.data.reading.extents import DataFile, Extent, ExtentTable
from ted_ds.data.reading.form import AS_IT_IS, Form, form_of
from ted_ds.data.reading.lines import read_json_lines, read_text_blocks, read_text_lines
from ted_ds.data.reading.records import FAULTS_OF_SOURCE, START, BadRecord, Item, Position, column_fault
from ted_ds.data.reading.tables import read_arrow, read_parquet, read_remote_arrow
from ted_ds.data.reading.whole import read_json_array, read_text_file
from ted_ds.data.sources import declared_names, is_remote, locate, without_query
from ted_ds.errors import DataError

EXTENT_BYTES = 2**18
ARROW_EXTENT_ROWS = 1000
FILES_AT_ONCE = 16
REMOTE_ATTEMPTS = 4
REMOTE_WAIT_S = 1.0
KEYS_OF_COLUMNS = (
    "task.rows; or, of lettered choices, task.text_column and task.label_column",
    "task.text_column, task.label_column or task.target_columns",
    "task.text_column and task.label_column, or for questions task.question_column, task.context_column and "
    "task.answers_column",
)
"""By how many columns hold texts."""
KEYS_OF_WORDS = "task.words_column or task.label_column"


@dataclass(frozen=True)
class Listing:
    """A source's files."""

    name: str
    """What the source is called in logs and messages."""
    format: str
    text_documents: str
    """For text: what a document is, a ``line``, a ``block`` or a ``file``."""
    files: tuple[DataFile, ...]
    form: Form = AS_IT_IS
    column_key: str | None = None
    """See :class:`ted_ds.config.data.Source`."""

    def extents(self, extent_bytes: int = EXTENT_BYTES) -> ExtentTable:
        """Its extents; those of tables have sizes of their own."""
        return ExtentTable(self.files, extent_bytes=extent_bytes, extent_rows=ARROW_EXTENT_ROWS)

    @property
    def is_divisible(self) -> bool:
        """Whether all files can be read from any byte on."""
        return all(file.division == "bytes" for file in self.files)

    def identity(self) -> dict[str, list[Any]]:
        """What knows its files again wherever they are: names, below the folder they share, sizes, and ends.

        A single file goes by any name.
        """
        places = [without_query(without_secrets(file.url)).split("/") for file in self.files]
        folders = {tuple(place[:-1]) for place in places}
        shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
        names = ["the file"] if len(places) == 1 else ["/".join(place[shared:]) for place in places]
        return {
            name: [file.size, file.ends_sha256, *([dict(file.class_names)] if file.class_names else [])]
            for name, file in zip(names, self.files, strict=True)
        }

    @property
    def num_bytes(self) -> int:
        """Size of all files, as stored."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class DataListing:
    """All sources of a recipe."""

    train: tuple[Listing, ...]
    evaluation: tuple[Listing, ...] | None
    """Held-out data; None where it is split off."""
    beside: Mapping[str, tuple[Listing, ...]] = field(default_factory=dict)
    """Of each set that is scored by itself (:attr:`ted_ds.config.data.Data.beside`)."""
    transfer: tuple[Listing, ...] = ()
    """Of texts that Stage II learns from without labels."""

    @property
    def sources(self) -> Iterator[Listing]:
        """All of them."""
        return itertools.chain(self.train, self.evaluation or (), *self.beside.values(), self.transfer)

    def identity(self) -> dict[str, dict[str, list[Any]]]:
        """By this a phase knows that its data changed, and not that it moved.

        It is of all but ``test`` and ``transfer``, which one phase each depends on.
        """
        parts = {"train": self.train, "evaluation": self.evaluation or ()}
        return _identity(parts | {f"apart.{name}": part for name, part in self.beside.items() if name != TEST})

    def test_identity(self) -> dict[str, dict[str, list[Any]]]:
        """The same of ``test``."""
        return _identity({TEST: self.beside.get(TEST, ())})

    def transfer_identity(self) -> dict[str, dict[str, list[Any]]]:
        """The same of ``transfer``."""
        return _identity({"transfer": self.transfer})


def _identity(parts: Mapping[str, Sequence[Listing]]) -> dict[str, dict[str, list[Any]]]:
    return {f"{name}[{i}]": one.identity() for name, part in parts.items() for i, one in enumerate(part)}


def list_data(data: Data) -> DataListing:
    """List every source of a recipe.

    Raises:
        DataError: One is not there, is empty, or of no known format.
    """
    heldout = None if data.heldout_sources is None else tuple(map(list_source, data.heldout_sources))
    beside = {name: tuple(map(list_source, one.sources)) for name, one in data.beside.items()}
    transfer = tuple(map(list_source, data.transfer or ()))
    return DataListing(tuple(map(list_source, data.train)), heldout, beside, transfer)


def list_source(source: Source) -> Listing:
    """List one source.

    Raises:
        DataError: It is not there, is empty, or of no known format.
    """
    kind, urls = locate(source)
    form = form_of(source, kind)
    declared = declared_names(source, urls)
    looked_at = set(with_ends(len(urls)))

    def describe(number: int) -> DataFile:
        return described(
            urls[number],
            kind,
            source.documents,
            declared[number],
            is_array=form.field is not None,
            has_ends=number in looked_at,
        )

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        files = tuple(pool.map(describe, range(len(urls))))
    if not any(file.size for file in files):
        raise DataError(f"{source.path}: empty; give at least one row")
    return Listing(source.path, kind, source.documents, files, form, source.column_key)


def one_by_one(source: Source) -> tuple[int, Iterator[Listing]]:
    """How many files a source has, and it with each of them that is not empty, looked at when its turn comes.

    Raises:
        DataError: It is not there, or of no known format; or one of them cannot be read.
    """
    kind, urls = locate(source)
    form = form_of(source, kind)
    declared = declared_names(source, urls)
    files = (
        described(*one, is_array=form.field is not None, whole=False)
        for one in zip(urls, itertools.repeat(kind), itertools.repeat(source.documents), declared, strict=False)
    )
    key = source.column_key
    return len(urls), (Listing(source.path, kind, source.documents, (file,), form, key) for file in files if file.size)


def read_extent(
    listing: Listing,
    extent: Extent,
    start: Position,
    columns: Sequence[str],
    *,
    max_bytes: int,
    of_words: bool = False,
    num_texts: int = 1,
) -> Iterator[Item]:
    """The records of an extent from a position on, each with ``columns`` or with a fault (:func:`column_fault`).

    What cannot be read any further ends with a fault; over a network it is tried several times first.
    """
    attempts = REMOTE_ATTEMPTS if is_remote(extent.url) else 1
    num_failed = 0
    while True:
        tried_from = start
        try:
            for item in _reader(listing, extent, columns, max_bytes)(start):
                start = item.end
                fault = item.fault or column_fault(
                    item.row, columns, max_bytes=max_bytes, of_words=of_words, num_texts=num_texts
                )
                yield Item(item.start, item.end, item.row if fault is None else {}, fault)
            return
        except Exception as error:  # file systems, decompressors and readers raise their own types
            num_failed = num_failed + 1 if start == tried_from else 1
            if num_failed == attempts or isinstance(error, FileNotFoundError):
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                yield Item(start, start, {}, f"cannot be read from here on: {reason}")
                return
            time.sleep(REMOTE_WAIT_S * num_failed)


def _reader(
    listing: Listing, extent: Extent, columns: Sequence[str], max_bytes: int
) -> Callable[[Position], Iterator[Item]]:
    if listing.format == "parquet":
        return lambda start: read_parquet(extent, start, columns)
    if listing.format == "arrow":
        read = read_remote_arrow if extent.file.division == "file" else read_arrow
        return lambda start: read(extent, start, columns)
    if listing.format == "csv":
        return lambda start: read_csv(extent, start, columns, form=listing.form, max_bytes=max_bytes)
    if listing.format == "json" and extent.file.is_array:
        return lambda start: read_json_array(extent, start, columns, field=listing.form.field)
    if listing.format == "json":
        return lambda start: read_json_lines(extent, start, columns, max_bytes=max_bytes)
    text: dict[str, Callable[..., Iterator[Item]]] = {
        "line": read_text_lines,
        "block": read_text_blocks,
        "file": read_text_file,
    }
    return lambda start: text[listing.text_documents](extent, start, max_bytes=max_bytes)


def describe_position(extent: Extent, position: Position, listing: Listing) -> str:
    """Where in its file an item starts, in words."""
    if listing.format == "parquet":
        return f"row group {extent.start}, row {position.offset + 1}"
    if listing.format == "arrow":
        return f"row {position.ordinal + 1 + (extent.start if extent.file.division == 'rows' else 0)}"
    if extent.file.is_array:
        return f"element {position.ordinal + 1}"
    after = f" after that of byte {position.block} decompressed" if compression_of(extent.url) else ""
    return f"byte {max(position.offset, extent.start)}{after}"


class Record(NamedTuple):
    """A row of a source that is read in file order."""

    number: int
    """In its source, from 1."""
    row: dict[str, Any]
    file: DataFile
    position: str
    """Where in the file, in words."""

    @property
    def place(self) -> str:
        """File and position."""
        return f"{without_secrets(self.file.url)}: {self.position}"

    def bad(self, fault: str) -> BadRecord:
        """The same as one that cannot be used."""
        return BadRecord(without_secrets(self.file.url), self.position, fault)


def read_in_order(
    listing: Listing,
    columns: Sequence[str],
    *,
    max_bytes: int,
    report: Callable[[BadRecord], None],
    by_number: bool = True,
    of_words: bool = False,
    num_texts: int = 1,
) -> Iterator[Record]:
    """Rows of a source in file order; bad ones are reported (:func:`column_fault`).

    ``by_number`` names those of a single file by their numbers; else all are named as a stream names them.

    Raises:
        DataError: The first record of the source lacks a column, or has it more than once.
    """
    extents = listing.extents()
    has_number = by_number and len(listing.files) == 1
    number = 0
    for index in range(len(extents)):
        extent = extents[index]
        for item in read_extent(
            listing, extent, START, columns, max_bytes=max_bytes, of_words=of_words, num_texts=num_texts
        ):
            number += 1
            position = f"row {number}" if has_number else describe_position(extent, item.start, listing)
            record = Record(number, item.row, extent.file, position)
            if item.fault is None:
                yield record
            elif number == 1 and item.fault.startswith(FAULTS_OF_SOURCE):
                keys = listing.column_key or (KEYS_OF_WORDS if of_words else KEYS_OF_COLUMNS[num_texts])
                what_to_do = f". Set {keys}" if item.fault.startswith("no column") else ""
                raise DataError(f"{record.place}: {item.fault}{what_to_do}")
            else:
                report(record.bad(item.fault))


def empty_files(listing: Listing) -> list[BadRecord]:
    """Files of a source in which there is nothing."""
    empty = [without_secrets(file.url) for file in listing.files if file.size == 0]
    return [BadRecord(url, "byte 0", "the file is empty") for url in empty]
