"""Formats made of lines: JSON lines, plain text by line or by paragraph block, and CSV."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ted_ds.data.reading.bytes import (
    CHUNK_BYTES,
    Chunk,
    compression_of,
    decompressed_chunks,
    plain_chunks,
    read_range,
)
from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.records import START, Item, Position

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOOK_BACK_BYTES = 2**16
"""How far before an extent to look for the start of a line, to know whether it is blank; a longer one is not."""


class Line(NamedTuple):
    """A line without its end, or None in the place of one that is too long to hold; where it and the next one start."""

    start: tuple[int, int]
    end: tuple[int, int]
    data: bytes | None


def split_lines(chunks: Iterable[Chunk], *, max_bytes: int) -> Iterator[Line]:
    """Lines of consecutive chunks, of which one is held at a time."""
    start: tuple[int, int] | None = None
    end = (0, 0)
    pieces: list[bytes] = []
    size = 0
    for block, offset, data in chunks:
        begin = 0
        while begin < len(data):
            start = start or (block, offset + begin)
            newline = data.find(b"\n", begin)
            stop = len(data) if newline < 0 else newline
            size += stop - begin
            pieces = [*pieces, data[begin:stop]] if size <= max_bytes else []
            end = (block, offset + stop)
            if newline < 0:
                break
            end = (block, offset + newline + 1)
            yield Line(start, end, b"".join(pieces) if size <= max_bytes else None)
            start, pieces, size = None, [], 0
            begin = newline + 1
    if start is not None:
        yield Line(start, end, b"".join(pieces) if size <= max_bytes else None)


def extent_lines(extent: Extent, start: Position, *, max_bytes: int, past_end: bool = False) -> Iterator[Line]:
    """The lines that start in an extent, from one of them on.

    ``past_end`` goes on to the end of the file.
    """
    compression = compression_of(extent.url)
    if compression is not None:  # one extent, the whole file
        chunks: Iterator[Chunk] = decompressed_chunks(extent.url, compression, block=start.block, skip=start.offset)
    else:
        chunks = _plain_from_first_line(extent, start)
    for line in split_lines(chunks, max_bytes=max_bytes):
        if compression is None and not past_end and line.start[1] >= extent.end:
            return
        yield line if line.start != (0, 0) or line.data is None else line._replace(data=_without_mark(line.data))


def _plain_from_first_line(extent: Extent, start: Position) -> Iterator[Chunk]:
    """Chunks from the first line that starts in the extent at or after a position."""
    begin = extent.start if start == START else start.offset
    look_from = begin - 1 if start == START and begin > 0 else begin
    head = read_range(extent.url, look_from, min(max(extent.end, look_from + 1), extent.size))
    if look_from < begin:
        newline = head.find(b"\n")
        if newline < 0:
            return  # one long line, which started before
        begin = look_from + newline + 1
        head = head[newline + 1 :]
    if begin >= extent.end:
        return
    if head:
        yield Chunk(0, begin, head)
    # what follows the extent is the rest of one line, as a rule a short one
    yield from plain_chunks(extent.url, begin + len(head), extent.size, chunk_bytes=CHUNK_BYTES // 16)


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
            yield Item(here, there, {}, _too_long(max_bytes))
            continue
        try:
            row = json.loads(line.data)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            yield Item(here, there, {}, f"not JSON in UTF-8: {error}")
            continue
        if isinstance(row, dict):
            yield Item(here, there, {name: row[name] for name in columns} if row.keys() >= set(columns) else row)
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
    for is_block, of_block in itertools.groupby(lines, key=lambda line: line.data is None or bool(line.data.strip())):
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
    if first is None or first.data is None or not first.data.strip():
        return False
    begin = first.start[1]
    before = read_range(extent.url, max(0, begin - LOOK_BACK_BYTES), begin - 1)
    return bool(before[before.rfind(b"\n") + 1 :].strip())


def _text_item(here: Position, there: Position, data: bytes | None, max_bytes: int) -> Item:
    if data is None:
        return Item(here, there, {}, _too_long(max_bytes))
    try:
        return Item(here, there, {"text": data.decode().removesuffix("\r")})
    except UnicodeDecodeError as error:
        return Item(here, there, {}, f"not UTF-8: {error}")


def _too_long(max_bytes: int) -> str:
    return f"longer than {max_bytes / 2**20:g} MiB (data.cleaning.max_document_mib)"


# --- CSV --------------------------------------------------------------------------------------------------------------


@dataclass
class _Decoded:
    """Lines as text for :mod:`csv`, with how far they were read."""

    lines: Iterator[Line]
    end: tuple[int, int]
    start: tuple[int, int] | None = None
    """Of the row's first line."""
    too_long: bool = False

    def forget(self) -> None:
        """A new row begins."""
        self.start, self.too_long = None, False

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.start = self.start or line.start
            self.end = line.end
            self.too_long |= line.data is None
            # bytes that are no UTF-8 become half surrogate pairs, which the check of the column finds
            yield (line.data or b"").decode(errors="surrogateescape") + "\n"


def read_csv(extent: Extent, start: Position, columns: Sequence[str], *, max_bytes: int) -> Iterator[Item]:
    """A record per row of a CSV file, whose first row names the columns.

    All but the first of ``columns``, which is the text, are read as JSON numbers or lists where they are some.
    """
    csv.field_size_limit(max_bytes)
    header_lines = _Decoded(extent_lines(extent, START, max_bytes=max_bytes), end=(0, 0))
    header = next(csv.reader(iter(header_lines), strict=True), None)
    if header is None:
        return
    if start == START:
        start = Position(0, *header_lines.end)
    decoded = _Decoded(extent_lines(extent, start, max_bytes=max_bytes), end=(start.block, start.offset))
    source = iter(decoded)
    ordinal = start.ordinal
    while True:
        rows = csv.reader(source, strict=True)
        while True:
            decoded.forget()
            fault = None
            row: list[str] = []
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                fault = f"not CSV: {error}"
            if decoded.too_long:
                fault = _too_long(max_bytes)
            if fault is None and not row:
                continue  # a blank line
            if fault is None and len(row) != len(header):
                fault = f"{len(row)} values for the {len(header)} columns of the first row"
            assert decoded.start is not None  # a row has a line
            here, there = Position(ordinal, *decoded.start), Position(ordinal + 1, *decoded.end)
            ordinal += 1
            if fault is not None:
                yield Item(here, there, {}, fault)
                break  # what the reader remembers of a broken row must not reach the next
            named = dict(zip(header, row, strict=True))
            wanted = {
                name: _value(named[name]) if i else named[name] for i, name in enumerate(columns) if name in named
            }
            yield Item(here, there, wanted if len(wanted) == len(columns) else named)


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | list) else text
