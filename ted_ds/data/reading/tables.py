"""Formats that hold columns: Parquet and Arrow."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import pyarrow.parquet
from datasets import Dataset

from ted_ds.data.reading.bytes import open_filesystem
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.records import Item, Position

ROWS_AT_ONCE = 256


@functools.lru_cache(maxsize=256)
def parquet_metadata(url: str) -> pyarrow.parquet.FileMetaData:
    """A Parquet file's footer, read once."""
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb") as file:
        return pyarrow.parquet.read_metadata(file)


def read_parquet(extent: Extent, start: Position, columns: Sequence[str]) -> Iterator[Item]:
    """A record per row of a row group, of which only ``columns`` are read, some rows at a time."""
    metadata = parquet_metadata(extent.url)
    present = metadata.schema.to_arrow_schema().names
    if not set(columns) <= set(present):
        yield Item(start, start, dict.fromkeys(present), None)
        return
    filesystem, path = open_filesystem(extent.url)
    with filesystem.open(path, "rb") as stream, pyarrow.parquet.ParquetFile(stream, metadata=metadata) as file:
        row = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[*range(extent.start, extent.end)], columns=[*columns]):
            first = row
            row += len(batch)
            if row > start.offset:
                skipped = max(start.offset - first, 0)
                yield from _items(batch.slice(skipped).to_pydict(), first + skipped, columns)


@functools.lru_cache(maxsize=64)
def arrow_file(path: str) -> Dataset:
    """A memory-mapped Arrow file."""
    return Dataset.from_file(path)


def read_arrow(extent: Extent, start: Position, columns: Sequence[str]) -> Iterator[Item]:
    """A record per row of a range of rows."""
    table = arrow_file(extent.url)
    if not set(columns) <= set(table.column_names):
        yield Item(start, start, dict.fromkeys(table.column_names), None)
        return
    table = table.select_columns([*columns])
    for first in range(extent.start + start.offset, extent.end, ROWS_AT_ONCE):
        rows = table[first : min(first + ROWS_AT_ONCE, extent.end)]
        yield from _items(rows, first - extent.start, columns)


def _items(rows: dict[str, list], first: int, columns: Sequence[str]) -> Iterator[Item]:
    for index, values in enumerate(zip(*(rows[name] for name in columns), strict=True), start=first):
        here, there = Position(index, 0, index), Position(index + 1, 0, index + 1)
        yield Item(here, there, dict(zip(columns, values, strict=True)))
