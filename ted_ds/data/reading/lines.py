"""Formats made of lines: JSON lines, and plain text by line or by paragraph block."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ted_ds.config.json_object import JsonObject
from ted_ds.data.reading.bytes import (
    CHUNK_BYTES,
    Chunk,
    compression_of,
    decompressed_chunks,
    plain_chunks,
    read_range,
)
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.fields import picked
from ted_ds.data.reading.records import (
    MIXED_LINE_ENDS,
    START,
    Item,
    Position,
    doubled_key_fault,
    may_be_doubled,
    too_long,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOOK_BACK_BYTES = 2**16
"""How much to read at a time before an extent, to know whether the line there is blank."""


class Line(NamedTuple):
    """A line without its end."""

    start: tuple[int, int]
    """Block and offset."""
    end: tuple[int, int]
    """Where the next one starts."""
    data: bytes | None
    """None for one that is too long to hold."""
    num_quotes: int
    """Of one that is too long, for CSV."""


def split_lines(chunks: Iterable[Chunk], *, max_bytes: int, line_end: bytes = b"\n") -> Iterator[Line]:
    """Lines of consecutive chunks, of which one is held at a time."""
    start: tuple[int, int] | None = None
    end = (0, 0)
    pieces: list[bytes] = []
    size = num_quotes = 0
    for block, offset, data in chunks:
        begin = 0
        while begin < len(data):
            start = start or (block, offset + begin)
            newline = data.find(line_end, begin)
            stop = len(data) if newline < 0 else newline
            size += stop - begin
            if size <= max_bytes:
                pieces.append(data[begin:stop])
            else:
                num_quotes += sum(piece.count(b'"') for piece in pieces) + data.count(b'"', begin, stop)
                pieces.clear()
            end = (block, offset + stop)
            if newline < 0:
                break
            end = (block, offset + newline + 1)
            yield Line(start, end, b"".join(pieces) if size <= max_bytes else None, num_quotes)
            start, pieces, size, num_quotes = None, [], 0, 0
            begin = newline + 1
    if start is not None:
        yield Line(start, end, b"".join(pieces) if size <= max_bytes else None, num_quotes)


def extent_lines(extent: Extent, start: Position, *, max_bytes: int, past_end: bool = False) -> Iterator[Line]:
    """The lines that start in an extent, from one of them on.

    ``past_end`` goes on to the end of the file.
    """
    compression = compression_of(extent.url)
    if compression is not None:  # one extent, the whole file
        block, skip = start.block, start.offset
        chunks: Iterator[Chunk] = decompressed_chunks(extent.url, compression, extent.size, block=block, skip=skip)
    else:
        chunks = _plain_from_first_line(extent, start, past_end=past_end)
    for line in split_lines(chunks, max_bytes=max_bytes, line_end=extent.file.line_end):
        if compression is None and not past_end and line.start[1] >= extent.end:
            return
        yield line if line.start != (0, 0) or line.data is None else line._replace(data=_without_mark(line.data))


def _plain_from_first_line(extent: Extent, start: Position, *, past_end: bool) -> Iterator[Chunk]:
    """Chunks from the first line that starts in the extent at or after a position."""
    url, end, line_end = extent.url, extent.end, extent.file.line_end
    begin = extent.start if start == START else start.offset
    if begin >= end:
        return
    looks_back = start == START and begin > 0  # for the end of the line before
    found, complete = not looks_back, False
    for _, offset, data in plain_chunks(url, begin - looks_back, end, chunk_bytes=CHUNK_BYTES + looks_back):
        skipped = 0 if found else data.find(line_end) + 1
        found = found or skipped > 0
        if found and skipped < len(data):
            complete = data.endswith(line_end)
            yield Chunk(0, offset + skipped, data[skipped:])
        elif found:
            complete = True
    if found and (past_end or not complete):
        # the rest of a line, as a rule a short one
        middle = min(end + CHUNK_BYTES // 16, extent.size)
        yield from plain_chunks(url, end, middle)
        yield from plain_chunks(url, middle, extent.size)


def _without_mark(data: bytes) -> bytes:
    return data.removeprefix(BYTE_ORDER_MARK)


def read_json_lines(extent: Extent, start: Position, columns: Sequence[str], *, max_bytes: int) -> Iterator[Item]:
    """A record per line; blank lines are none."""
    ordinal = start.ordinal
    for line in extent_lines(extent, start, max_bytes=max_bytes):
        if line.data is not None and not line.data.strip():
            continue
        here, there = Position(ordinal, *line.start), Position(ordinal + 1, *line.end)
        ordinal += 1
        if line.data is None:
            yield Item(here, there, {}, too_long(max_bytes))
            continue
        try:
            text = str(_without_mark(line.data), "utf-8")
            row = json.loads(text)
            fault = None
            if may_be_doubled(text, columns, 1):
                row = json.loads(text, object_pairs_hook=JsonObject)
                fault = doubled_key_fault(row, columns)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            is_mixed = str(error).startswith("Extra data") and any(end in line.data.strip() for end in (b"\r", b"\n"))
            yield Item(here, there, {}, f"not JSON in UTF-8: {MIXED_LINE_ENDS if is_mixed else error}")
            continue
        if fault is not None:
            yield Item(here, there, {}, fault)
        elif isinstance(row, dict):
            yield Item(here, there, picked(row, columns))
        else:
            yield Item(here, there, {}, f"a JSON {type(row).__name__}; each line must be an object")


def read_text_lines(extent: Extent, start: Position, *, max_bytes: int) -> Iterator[Item]:
    """A record ``{"text": ...}`` per line, blank ones included."""
    lines = extent_lines(extent, start, max_bytes=max_bytes)
    for ordinal, line in enumerate(lines, start=start.ordinal):
        yield _text_item(Position(ordinal, *line.start), Position(ordinal + 1, *line.end), line.data, max_bytes)


def read_text_blocks(extent: Extent, start: Position, *, max_bytes: int) -> Iterator[Item]:
    """A record ``{"text": ...}`` per run of lines that are not blank, where the run starts in the extent."""
    ordinal = start.ordinal
    inside = start == START and _starts_inside_block(extent, max_bytes)
    lines = extent_lines(extent, start, max_bytes=max_bytes, past_end=True)
    plain = compression_of(extent.url) is None
    for is_block, of_block in itertools.groupby(lines, key=_is_text):
        first = next(of_block)
        if plain and first.start[1] >= extent.end:
            return
        size, end = 0, first.end
        pieces: list[bytes] = []
        for line in itertools.chain([first], of_block):
            size += max_bytes + 1 if line.data is None else len(line.data) + 1
            if size > max_bytes:
                pieces.clear()
            else:
                pieces.append(line.data or b"")
            end = line.end
            if inside and plain and end[1] >= extent.end:
                return  # the block of an extent before goes on beyond this one
        if is_block and not inside:
            data = b"\n".join(pieces) if size <= max_bytes else None
            yield _text_item(Position(ordinal, *first.start), Position(ordinal + 1, *end), data, max_bytes)
            ordinal += 1
        inside = False


def _starts_inside_block(extent: Extent, max_bytes: int) -> bool:
    """Whether the first line that starts in the extent goes on with a block."""
    if extent.start == 0:
        return False
    first = next(extent_lines(extent, START, max_bytes=max_bytes), None)
    if first is None or not _is_text(first):
        return False
    end = begin = first.start[1] - 1  # of the line before
    while begin > 0 and end - begin <= max_bytes:
        at = begin - LOOK_BACK_BYTES if begin - LOOK_BACK_BYTES >= len(BYTE_ORDER_MARK) else 0
        data = read_range(extent.url, at, begin)
        if at == 0:
            data = _without_mark(data).rjust(len(data))
        newline = data.rfind(extent.file.line_end)
        if data[newline + 1 :].strip():
            return True
        begin = at + newline + 1
        if newline >= 0:
            break
    return end - begin > max_bytes  # as blank as it may be


def _is_text(line: Line) -> bool:
    """Whether a line is part of a block: it is not blank, or too long to know."""
    return line.data is None or bool(line.data.strip())


def _text_item(here: Position, there: Position, data: bytes | None, max_bytes: int) -> Item:
    if data is None:
        return Item(here, there, {}, too_long(max_bytes))
    try:
        return Item(here, there, {"text": data.decode().removesuffix("\r")})
    except UnicodeDecodeError as error:
        return Item(here, there, {}, f"not UTF-8: {error}")
