"""Files that are read whole: JSON arrays, and text files that are one document each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ted_ds.config.json_object import JsonObject
from ted_ds.data.reading.bytes import compression_of, decompressed_chunks, plain_chunks
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.records import START, Item, Position, doubled_fault, may_be_doubled, too_long

LARGEST_ARRAY_BYTES = 2**26


def read_json_array(extent: Extent, start: Position, columns: Sequence[str]) -> Iterator[Item]:
    """A record per object of a JSON array."""
    data = _whole(extent, LARGEST_ARRAY_BYTES)
    if data is None:
        fault = f"a JSON array of more than {LARGEST_ARRAY_BYTES >> 20} MiB would be held whole; use JSON lines"
        yield Item(start, start, {}, fault)
        return
    try:
        text = data.decode("utf-8-sig")
        rows = json.loads(text)
        if may_be_doubled(text, columns, len(rows)):
            rows = json.loads(text, object_pairs_hook=JsonObject)
    except (ValueError, RecursionError) as error:
        yield Item(start, start, {}, f"not JSON in UTF-8: {error}")
        return
    for index in range(start.ordinal, len(rows)):
        row, here, there = rows[index], Position(index, 0, index), Position(index + 1, 0, index + 1)
        fault = None if isinstance(row, dict) else f"a JSON {type(row).__name__}; each element must be an object"
        if isinstance(row, JsonObject):
            fault = doubled_fault(columns, row.keys_given)
        yield Item(here, there, row if fault is None else {}, fault)


def read_text_file(extent: Extent, start: Position, *, max_bytes: int) -> Iterator[Item]:
    """One record ``{"text": ...}``, the file."""
    if start != START:
        return
    end = Position(1, 0, 0)
    data = _whole(extent, max_bytes)
    if data is None:
        yield Item(START, end, {}, too_long(max_bytes))
        return
    try:
        yield Item(START, end, {"text": data.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        yield Item(START, end, {}, f"not UTF-8: {error}")


def _whole(extent: Extent, max_bytes: int) -> bytes | None:
    """A file's bytes, decompressed; None where they are too many."""
    compression = compression_of(extent.url)
    if compression is None:
        chunks = plain_chunks(extent.url, 0, extent.size)
    else:
        chunks = decompressed_chunks(extent.url, compression, extent.size, block=0, skip=0)
    pieces, size = [], 0
    for chunk in chunks:
        pieces.append(chunk.data)
        size += len(chunk.data)
        if size > max_bytes:
            return None
    return b"".join(pieces)
