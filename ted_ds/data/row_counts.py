"""How many training rows a labelled set has, as far as it can be told in a moment; without torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ted_ds.config.data import Data
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.reading.bytes import CHUNK_BYTES, compression_of, plain_chunks
from ted_ds.data.reading.extents import DataFile
from ted_ds.data.reading.listing import Listing, list_source, read_in_order
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.reading.tables import parquet_metadata
from ted_ds.data.samples import BadRow, Rows
from ted_ds.data.sources import is_remote, names_hub
from ted_ds.errors import counted

MOST_BYTES_READ = 2**23
"""Of all sources: more are not read row by row here."""
MOST_BYTES_COUNTED = 2**30
"""Of all sources: of more, not even the lines are counted."""


@dataclass(frozen=True)
class RowCount:
    """How many training rows there are."""

    number: int
    is_exact: bool
    """Whether each was read as a run reads it; else it is by lines, and what tables and cards say."""
    limit: Literal["least", "most"] | None = None
    """Which of what a run will count it is, where rows are not sequences."""
    num_heldout: int | None = field(default=None, compare=False)
    """Rows that a hash of their texts holds out; None where they are not counted, or are of files of their own."""

    @property
    def how(self) -> str:
        """How exact it is, in words for before a number that follows from it."""
        if self.limit is not None:
            return f"at {self.limit} "
        return "" if self.is_exact else "about "

    def __str__(self) -> str:
        """In words."""
        return f"{self.how}{counted(self.number, 'row')}"


def count_training_rows(data: Data, rows: Rows) -> RowCount | None:
    """The rows of ``data.train`` that are not held out; None where it would take long, or another machine, to tell.

    Raises:
        DataError: A source is wrong.
    """
    if any(names_hub(source) or is_remote(source.path) for source in data.train):
        return None
    listings = [list_source(source) for source in data.train]
    is_split = data.heldout_sources is None
    num_bytes = sum(listing.num_bytes for listing in listings)
    is_plain = not any(compression_of(file.url) for listing in listings for file in listing.files)
    if num_bytes <= MOST_BYTES_READ and is_plain:
        fraction = data.heldout_fraction if is_split else 0.0
        max_bytes = int(data.cleaning.max_document_mib * 2**20)
        counts = [_count_read(listing, rows, fraction, max_bytes) for listing in listings]
        number, num_heldout = (sum(part) for part in zip(*counts, strict=True))
        return RowCount(number, is_exact=True, num_heldout=num_heldout if is_split else None)
    if num_bytes > MOST_BYTES_COUNTED:
        return None
    counts = [_count_lines(listing, file) for listing in listings for file in listing.files]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return RowCount(round(sum(known) * (1 - data.heldout_fraction * is_split)), is_exact=False)


def _count_read(listing: Listing, rows: Rows, heldout_fraction: float, max_bytes: int) -> tuple[int, int]:
    """Of training rows, and of those that are held out."""
    bad: list[BadRecord] = []
    number = num_heldout = 0
    for record in read_in_order(
        listing,
        rows.columns,
        max_bytes=max_bytes,
        report=bad.append,
        of_words=rows.of_words,
        num_texts=rows.num_texts,
    ):
        try:
            examples = rows.read(record.row, where=record.place, declared=dict(record.file.class_names))
        except BadRow:
            continue
        good = [example for example in examples if example.fault(rows.columns) is None]
        held_out = sum(is_heldout(example.whole_text, heldout_fraction) for example in good)
        number, num_heldout = number + len(good) - held_out, num_heldout + held_out
    return number, num_heldout


def _count_lines(listing: Listing, file: DataFile) -> int | None:
    """About how many rows a file has; None where that is not told by its lines or itself."""
    if file.size == 0:
        return 0
    if listing.format == "parquet":
        return parquet_metadata(file.url).num_rows
    if listing.format == "arrow":
        return file.num_pieces if file.division == "rows" else None
    of_lines = listing.format in ("json", "csv") or listing.text_documents == "line"
    if file.is_array or not of_lines or compression_of(file.url) is not None:
        return None
    number = sum(
        chunk.data.count(file.line_end) for chunk in plain_chunks(file.url, 0, file.size, chunk_bytes=16 * CHUNK_BYTES)
    )
    return number - (listing.format == "csv" and not listing.form.columns)
