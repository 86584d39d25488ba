"""Files that are read whole: JSON arrays, and text files that are one document each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ted_ds.config.json_object import JsonObject
from ted_ds.data.reading.bytes import compression_of, decompressed_chunks, plain_chunks
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.fields import picked, value_at
from ted_ds.data.reading.records import (
    NO_LIST,
    START,
    Item,
    Position,
    doubled_key_fault,
    may_be_doubled,
    too_long,
)

LARGEST_ARRAY_BYTES = 2**26
MOST_KEYS = 10
"""Of an object, in a message."""


def read_json_array(
    extent: Extent, start: Position, columns: Sequence[str], *, field: str | None = None
) -> Iterator[Item]:
    """A record per object of a JSON array, which is the whole file or stands in it under the path ``field``."""
    data = _whole(extent, LARGEST_ARRAY_BYTES)
    if data is None:
        fault = f"a JSON array of more than {LARGEST_ARRAY_BYTES >> 20} MiB would be held whole; use JSON lines"
        yield Item(start, start, {}, fault)
        return
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text)
        rows = content if field is None else value_at(content, field)
        if not isinstance(rows, list):
            yield Item(start, start, {}, f"{NO_LIST} under {field!r}; {_what_is_in(content)}")
            return
        if may_be_doubled(text, columns, len(rows)):
            content = json.loads(text, object_pairs_hook=JsonObject)
            rows = content if field is None else value_at(content, field)
    except (ValueError, RecursionError) as error:
        yield Item(start, start, {}, f"not JSON in UTF-8: {error}")
        return
    for index in range(start.ordinal, len(rows)):
        row, here, there = rows[index], Position(index, 0, index), Position(index + 1, 0, index + 1)
        fault = None if isinstance(row, dict) else f"a JSON {type(row).__name__}; each element must be an object"
        fault = fault or doubled_key_fault(row, columns)
        yield Item(here, there, picked(row, columns) if fault is None else {}, fault)


def _what_is_in(content: Any) -> str:
    if not isinstance(content, dict):
        return f"the file is a JSON {type(content).__name__}; leave field out if its elements are the rows"
    kinds = ", ".join(f"{key} (a {type(value).__name__})" for key, value in [*content.items()][:MOST_KEYS])
    return f"the file's object has {kinds or 'no keys'}"


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
