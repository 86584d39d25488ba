"""CSV files: rows that may go over several lines."""

from __future__ import annotations

import collections
import csv
from collections.abc import Iterator, Sequence

from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.lines import Line, extent_lines
from ted_ds.data.reading.records import MIXED_LINE_ENDS, START, Item, Position, doubled_fault, too_long
from ted_ds.data.sources import uncompressed_name

DELIMITERS = (",", "\t", ";", "|")


class _TooLong(csv.Error):
    pass


class _RowLines(Iterator[str]):
    """Lines as text for :mod:`csv`, which remembers those of the current row."""

    def __init__(self, extent: Extent, start: Position, *, max_bytes: int, delimiter: str) -> None:
        self._extent, self._max_bytes, self._delimiter = extent, max_bytes, delimiter
        self._lines = extent_lines(extent, start, max_bytes=max_bytes)
        self._again: collections.deque[Line] = collections.deque()
        self.row: list[Line] = []
        self._size = 0

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.row.append(line)
        self._size += len(line.data or b"") + 1
        if line.data is None or self._size > self._max_bytes + 1:
            raise _TooLong(too_long(self._max_bytes))
        # bytes that are no UTF-8 become half surrogate pairs, which the check of the column finds
        return line.data.decode(errors="surrogateescape") + "\n"

    def next_row(self) -> list[str] | None:
        """The next row, empty for a blank line; None where there are no more.

        Raises:
            csv.Error: Its lines are no row. The next one begins with the second of them: who knows how many there are
                in what a quote without its end seems to hold. Or the row is too long, and goes on to where its last
                quote ends.
        """
        self.row, self._size = [], 0
        try:
            return next(csv.reader(self, strict=True, delimiter=self._delimiter), None)
        except _TooLong:
            self._skip_quoted()
            raise
        except csv.Error as error:
            self._again.extendleft(reversed(self.row[1:]))
            del self.row[1:]
            raise csv.Error(_in_words(error, self._delimiter)) from error

    def _skip_quoted(self) -> None:
        """Pass over the rest of a row that is too long."""
        num_quotes = sum(map(_num_quotes, self.row))
        del self.row[1:-1]
        while num_quotes % 2:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:  # the quote has no end
                del self.row[1:]
                self._lines = extent_lines(self._extent, Position(1, *self.row[0].end), max_bytes=self._max_bytes)
                return
            self.row[1:] = [line]
            num_quotes += _num_quotes(line)


def _in_words(error: csv.Error, delimiter: str) -> str:
    """What is wrong with a row, and what to do."""
    kind = "TSV" if delimiter == "\t" else "CSV"
    fault = str(error)
    if fault.startswith("new-line character"):
        return f"not {kind}: {MIXED_LINE_ENDS}"
    if "expected after" in fault or fault == "unexpected end of data":
        end = "goes on after its closing quote" if "expected after" in fault else "has no closing quote"
        return (
            f"not {kind}: a value that begins with a quote {end}; put each value with quotes in it between quotes, and "
            "double those in it, or save the file as JSON lines"
        )
    return f"not {kind}: {fault}"


def _num_quotes(line: Line) -> int:
    return line.num_quotes if line.data is None else line.data.count(b'"')


def read_csv(extent: Extent, start: Position, columns: Sequence[str], *, max_bytes: int) -> Iterator[Item]:
    """A record per row of a CSV file, whose first row names the columns.

    Every value is text: what it says is for those to decide who know what they want of it.
    """
    csv.field_size_limit(max_bytes + 1)
    header, lines, delimiter = _header(extent, columns, max_bytes)
    if header is None:
        return
    doubled = doubled_fault(columns, header)
    if start != START:
        lines = _RowLines(extent, start, max_bytes=max_bytes, delimiter=delimiter)
    ordinal = start.ordinal
    while True:
        row, fault = None, None
        try:
            row = lines.next_row()
            if row is None:
                return
            if not row:
                continue  # a blank line
            fault = doubled
            if fault is None and len(row) != len(header):
                fault = f"{len(row)} values for the {len(header)} columns of the first row"
        except csv.Error as error:
            fault = str(error)
        here, there = Position(ordinal, *lines.row[0].start), Position(ordinal + 1, *lines.row[-1].end)
        ordinal += 1
        if row is None or fault is not None:
            yield Item(here, there, {}, fault)
            continue
        named = dict(zip(header, row, strict=True))
        wanted = {name: named[name] for name in columns if name in named}
        yield Item(here, there, wanted if columns and len(wanted) == len(columns) else named)


def _header(extent: Extent, columns: Sequence[str], max_bytes: int) -> tuple[list[str] | None, _RowLines, str]:
    """The first row, the lines behind it, and what separates its values.

    That is a comma, in a ``.tsv`` file a tab; or what else is usual, where only with it all ``columns`` are there.
    """
    own = "\t" if uncompressed_name(extent.url).endswith(".tsv") else ","
    found = None
    for delimiter in (own, *(other for other in DELIMITERS if other != own)):
        lines = _RowLines(extent, START, max_bytes=max_bytes, delimiter=delimiter)
        header: list[str] | None = []
        try:
            while header == []:
                header = lines.next_row()
        except csv.Error:
            if delimiter == own:
                raise
            continue
        if found is None or set(columns) <= set(header or ()):
            found = (header, lines, delimiter)
        if set(columns) <= set(header or ()):
            break
    assert found is not None
    return found
