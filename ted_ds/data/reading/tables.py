"""Formats that hold columns: Parquet and Arrow."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from ted_ds.data.reading.bytes import open_filesystem
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.fields import picked, roots
from ted_ds.data.reading.records import Item, Position, doubled_fault

ROWS_AT_ONCE = 256
ARROW_MAGIC = b"ARROW1\0\0"
SCHEMA_BYTES = 2**16
BYTES_AT_ONCE = 2**22
"""Of rows on average."""


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
    columns = columns or present
    group = metadata.row_group(extent.start)
    own = roots(columns, present)
    if _are_unusable(own, present):
        yield from _without_columns(own, present, start.offset, group.num_rows)
        return
    num_rows = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE * group.num_rows // max(group.total_byte_size, 1)))
    filesystem, path = open_filesystem(extent.url)
    with filesystem.open(path, "rb") as stream, pyarrow.parquet.ParquetFile(stream, metadata=metadata) as file:
        row = 0
        for batch in file.iter_batches(num_rows, row_groups=[extent.start], columns=own):
            first = row
            row += len(batch)
            if row > start.offset:
                skipped = max(start.offset - first, 0)
                yield from _items(batch.slice(skipped), first + skipped, columns)


@functools.lru_cache(maxsize=64)
def arrow_file(path: str) -> Any:
    """A memory-mapped Arrow file, of the streaming format (as ``datasets`` writes it) or the one with a footer."""
    from datasets.table import InMemoryTable, MemoryMappedTable  # most of a second, which ``check`` has not

    try:
        return MemoryMappedTable.from_file(path)
    except pyarrow.ArrowInvalid:
        return InMemoryTable(pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all())


def arrow_schema(url: str) -> Any:
    """An Arrow file's schema, at its beginning."""
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb", block_size=SCHEMA_BYTES) as file:
        if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
            file.seek(0)
        return pyarrow.ipc.open_stream(file).schema


def read_arrow(extent: Extent, start: Position, columns: Sequence[str]) -> Iterator[Item]:
    """A record per row of a range of rows."""
    table = arrow_file(extent.url)
    columns = columns or table.column_names
    own = roots(columns, table.column_names)
    if _are_unusable(own, table.column_names):
        yield from _without_columns(own, table.column_names, start.offset, extent.end - extent.start)
        return
    for first in range(extent.start + start.offset, extent.end, ROWS_AT_ONCE):
        rows = table.fast_slice(first, min(ROWS_AT_ONCE, extent.end - first)).select(own)
        yield from _items(rows, first - extent.start, columns)


def read_remote_arrow(extent: Extent, start: Position, columns: Sequence[str]) -> Iterator[Item]:
    """A record per row of a whole Arrow file, batch after batch; one with a footer is a stream behind eight bytes."""
    filesystem, path = open_filesystem(extent.url)
    with filesystem.open(path, "rb", block_size=BYTES_AT_ONCE) as file:
        if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
            file.seek(0)
        reader = pyarrow.ipc.open_stream(file)
        names, ordinal = reader.schema.names, start.ordinal
        columns = columns or names
        own = roots(columns, names)
        if start.block and not any(pyarrow.types.is_dictionary(kind) for kind in reader.schema.types):
            file.seek(start.block)
        while True:
            block = file.tell()
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            if block < start.block:
                continue
            first = start.offset if block == start.block else 0
            if _are_unusable(own, names):
                items = _without_columns(own, names, first, len(batch))
            else:
                items = _items(batch.slice(first), first, columns)
            for item in items:
                here, there = (Position(ordinal + i, block, item.start.offset + i) for i in (0, 1))
                ordinal += 1
                yield Item(here, there, item.row, item.fault)


def _are_unusable(columns: Sequence[str], present: Sequence[str]) -> bool:
    return not set(columns) <= set(present) or doubled_fault(columns, present) is not None


def _without_columns(columns: Sequence[str], present: Sequence[str], first: int, end: int) -> Iterator[Item]:
    fault = doubled_fault(columns, present)
    for index in range(first, end):
        here, there = Position(index, 0, index), Position(index + 1, 0, index + 1)
        yield Item(here, there, {} if fault else dict.fromkeys(present), fault)


def _items(rows: Any, first: int, columns: Sequence[str]) -> Iterator[Item]:
    """A record per row of a batch or table, one by one so that a value that is none harms no other row."""
    own = roots(columns, rows.schema.names)
    arrays = [rows.column(name) for name in own]
    for row in range(len(rows)):
        index = first + row
        here, there = Position(index, 0, index), Position(index + 1, 0, index + 1)
        try:
            values = {name: array[row].as_py() for name, array in zip(own, arrays, strict=True)}
        except (ValueError, ArithmeticError) as error:  # UnicodeDecodeError, pyarrow.ArrowInvalid, OverflowError
            yield Item(here, there, {}, f"a value cannot be read: {error}")
            continue
        yield Item(here, there, picked(values, columns))
