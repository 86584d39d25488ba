"""What readers give: records with their positions, and what is wrong with those that cannot be used."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ted_ds.data.reading.fields import doubled_key, keys_of


class Position(NamedTuple):
    """Where a record starts in an extent; reading from it gives that record and all later ones."""

    ordinal: int
    """Records of the extent before it."""
    block: int
    """Compressed files: the byte at which the member or frame starts that must be decompressed to get there; else 0."""
    offset: int
    """From there: bytes (decompressed), or rows in tables."""


START = Position(0, 0, 0)
DOUBLED = "more than one column"
NAMES_DO_NOT_FIT = "columns names"
NO_LIST = "no list of rows"
FAULTS_OF_SOURCE = ("no column", DOUBLED, NAMES_DO_NOT_FIT, NO_LIST)
"""How faults begin that, where the first record has one, all others will have."""
MIXED_LINE_ENDS = "line ends of more than one kind; save the file with one kind of line end"
ESCAPED_KEY = re.compile(r'\\u[0-9a-fA-F]{4}[^"]{0,256}"\s*:')
"""The end of a key in JSON with an escape in it."""


class Item(NamedTuple):
    """A record, or what is wrong in its place."""

    start: Position
    end: Position
    """Where the next one starts."""
    row: dict[str, Any]
    """The columns asked for; empty where there is a fault."""
    fault: str | None = None


class BadRecord(NamedTuple):
    """A record that was skipped."""

    file: str
    position: str
    fault: str


def column_fault(
    row: dict[str, Any], columns: Sequence[str], *, max_bytes: int, of_words: bool = False, num_texts: int = 1
) -> str | None:
    """What is wrong with a row of which ``columns`` are wanted, the first of them as text; None if nothing is.

    Args:
        row: As it was read.
        columns: Those behind the texts may hold nothing: a row need not have a label. Without any, all of a row is
            wanted, and who reads it says what is wrong.
        max_bytes: The longest text.
        of_words: Whether the first holds a list of words instead.
        num_texts: How many of them hold texts: one, or two of pairs.
    """
    if not columns:
        return None
    for column in columns:
        if column not in row:
            present = ", ".join(map(str, row)).encode(errors="backslashreplace").decode()
            lists = [key for key, value in row.items() if isinstance(value, list) and _are_rows(value)]
            hint = f" (if its rows are the list under {lists[0]!r}, set field: {lists[0]})" if lists else ""
            return f"no column {column!r}; it has {present or 'none'}{hint}"
    if of_words:
        words = row[columns[0]]
        if words is not None and (not isinstance(words, list) or not all(isinstance(word, str) for word in words)):
            return f"column {columns[0]!r} holds {words!r:.50}; it must be a list of words, each as text"
        return _text_fault(columns[0], None if words is None else " ".join(words), max_bytes)
    faults = (_text_fault(column, row[column], max_bytes) for column in columns[:num_texts])
    return next((fault for fault in faults if fault is not None), None)


def _text_fault(column: str, text: Any, max_bytes: int) -> str | None:
    if text is None:
        return f"no value in column {column!r}; every row needs one"
    if not isinstance(text, str):
        return f"column {column!r} holds {text!r:.50}; it must be text"
    size = len(text)
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return f"column {column!r}: not valid Unicode (wrong encoding, or half a surrogate pair); use UTF-8"
    return too_long(max_bytes) if size > max_bytes else None


def _are_rows(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(one, dict) for one in value)


def doubled_fault(columns: Sequence[str], present: Sequence[str]) -> str | None:
    """What is wrong where one of the wanted ``columns`` is ``present`` more than once; None if none is."""
    return _doubled(next((column for column in columns if present.count(column) > 1), None))


def doubled_key_fault(row: Any, columns: Sequence[str]) -> str | None:
    """The same of an object of JSON and all keys on the way to ``columns``."""
    return _doubled(next((key for column in columns if (key := doubled_key(row, column)) is not None), None))


def _doubled(name: str | None) -> str | None:
    return None if name is None else f"{DOUBLED} {name!r}; remove or rename all but one"


def may_be_doubled(text: str, keys: Sequence[str], num_objects: int) -> bool:
    """Whether JSON of so many objects may have one of ``keys`` twice in one: rarely so where it has not.

    A key may be written with escapes, each a backslash and u.
    """
    return any(text.count(key) > num_objects for key in _quoted(tuple(keys))) or ESCAPED_KEY.search(text) is not None


@functools.cache  # asked for with each record, and always of the same columns
def _quoted(columns: tuple[str, ...]) -> list[str]:
    return [f'"{key}"' for key in keys_of(columns)]


def too_long(max_bytes: int) -> str:
    """What is wrong with a longer record."""
    return f"longer than {max_bytes / 2**20:g} MiB (data.cleaning.max_document_mib)"
