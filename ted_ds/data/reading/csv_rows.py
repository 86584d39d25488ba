"""CSV files: rows that may go over several lines."""

from __future__ import annotations

import collections
import csv
from collections.abc import Iterator, Sequence

from ted_ds.data.reading.extents import Extent
from ted_ds.data.reading.form import Form
from ted_ds.data.reading.lines import Line, extent_lines
from ted_ds.data.reading.records import (
    MIXED_LINE_ENDS,
    NAMES_DO_NOT_FIT,
    START,
    Item,
    Position,
    doubled_fault,
    too_long,
)
from ted_ds.data.sources import uncompressed_name

DELIMITERS = (",", "\t", ";", "|")
"""That are tried where none is given."""


class _TooLong(csv.Error):
    pass


class _RowLines(Iterator[str]):
    """Lines as text for :mod:`csv`, which remembers those of the current row."""

    def __init__(self, extent: Extent, start: Position, *, max_bytes: int, delimiter: str, has_quotes: bool) -> None:
        self._extent, self._max_bytes, self._delimiter, self._has_quotes = extent, max_bytes, delimiter, has_quotes
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

    def again(self, start: Position) -> _RowLines:
        """The same from another row on."""
        return _RowLines(
            self._extent, start, max_bytes=self._max_bytes, delimiter=self._delimiter, has_quotes=self._has_quotes
        )

    def next_row(self) -> list[str] | None:
        """The next row, empty for a blank line; None where there are no more.

        Raises:
            csv.Error: Its lines are no row. The next one begins with the second of them: who knows how many there are
                in what a quote without its end seems to hold. Or the row is too long, and goes on to where its last
                quote ends.
        """
        self.row, self._size = [], 0
        try:
            quoting = csv.QUOTE_MINIMAL if self._has_quotes else csv.QUOTE_NONE
            return next(csv.reader(self, strict=True, delimiter=self._delimiter, quoting=quoting), None)
        except _TooLong:
            self._skip_quoted()
            raise
        except csv.Error as error:
            self._again.extendleft(reversed(self.row[1:]))
            del self.row[1:]
            raise csv.Error(_in_words(error, self._delimiter)) from error

    def _skip_quoted(self) -> None:
        """Pass over the rest of a row that is too long."""
        num_quotes = sum(map(_num_quotes, self.row)) if self._has_quotes else 0
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
            f"not {kind}: a value that begins with a quote {end}; set quoting: none where quotes are characters like "
            "any other; else put each value with quotes in it between quotes, and double those in it"
        )
    return f"not {kind}: {fault}"


def _num_quotes(line: Line) -> int:
    return line.num_quotes if line.data is None else line.data.count(b'"')


def read_csv(extent: Extent, start: Position, columns: Sequence[str], *, form: Form, max_bytes: int) -> Iterator[Item]:
    """A record per row of a CSV file, whose first row names the columns where ``form`` does not.

    Every value is text: what it says is for those to decide who know what they want of it.
    """
    csv.field_size_limit(max_bytes + 1)
    header, lines = _opened(extent, columns, form, max_bytes)
    if header is None:
        return
    doubled = doubled_fault(columns, header)
    if start != START:
        lines = lines.again(start)
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
            if fault is None and row == [*form.columns]:
                fault = f"{NAMES_DO_NOT_FIT} the values of each row, and this row is those names; leave columns out"
            elif fault is None and len(row) != len(header):
                fault = _wrong_number(len(row), len(header), form)
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


def _wrong_number(num_values: int, num_columns: int, form: Form) -> str:
    if not form.columns:
        return f"{num_values} values for the {num_columns} columns of the first row"
    return (
        f"{NAMES_DO_NOT_FIT} {num_columns} values, and this row has {num_values}; name each value of a row, and see "
        "that delimiter and quoting are the file's"
    )


def _opened(
    extent: Extent, columns: Sequence[str], form: Form, max_bytes: int
) -> tuple[Sequence[str] | None, _RowLines]:
    """The names of the columns, None in a file without a row, and the lines of all rows.

    Values are separated as ``form`` says; else by a comma, in a ``.tsv`` file a tab; or what else is usual, where only
    with it all ``columns`` are there, or a first row without names has as many values as it should.
    """
    own = form.delimiter or ("\t" if uncompressed_name(extent.url).endswith(".tsv") else ",")
    found = None
    for delimiter in (own, *(other for other in DELIMITERS if other != own and form.delimiter is None)):
        lines = _RowLines(extent, START, max_bytes=max_bytes, delimiter=delimiter, has_quotes=form.has_quotes)
        first: list[str] | None = []
        try:
            while first == []:
                first = lines.next_row()
        except csv.Error:
            if delimiter == own and not form.columns:
                raise
            continue
        fits = len(first or ()) == len(form.columns) if form.columns else set(columns) <= set(first or ())
        if found is None or fits:
            found = (first, lines)
        if fits:
            break
    if not form.columns:
        assert found is not None, "a first row that cannot be read has raised"
        return found
    if found is None:  # the first row has a fault, which is told when it is read
        lines = _RowLines(extent, START, max_bytes=max_bytes, delimiter=own, has_quotes=form.has_quotes)
        return form.columns, lines
    return None if found[0] is None else form.columns, found[1].again(START)
