"""What readers give: records with their positions, and what is wrong with those that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


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
MIXED_LINE_ENDS = "line ends of more than one kind; save the file with one kind of line end"
ESCAPED_KEY = re.compile(r'\\u[0-9a-fA-F]{4}[^"]{0,256}"\s*:')
"""The end of a key in JSON with an escape in it."""


@dataclass(frozen=True, slots=True)
class Item:
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


def column_fault(row: dict[str, Any], columns: Sequence[str], *, max_bytes: int, of_words: bool = False) -> str | None:
    """What is wrong with a row of which ``columns`` are wanted, the first of them as text; None if nothing is.

    The others may hold nothing: a row need not have a label. ``of_words``: the first holds a list of words instead.
    Without ``columns`` all of a row is wanted, and who reads it says what is wrong.
    """
    if not columns:
        return None
    for column in columns:
        if column not in row:
            present = ", ".join(map(str, row)).encode(errors="backslashreplace").decode()
            return f"no column {column!r}; it has {present or 'none'}"
    text = row[columns[0]]
    if text is None:
        return f"no value in column {columns[0]!r}; every row needs one"
    if of_words:
        if not isinstance(text, list) or not all(isinstance(word, str) for word in text):
            return f"column {columns[0]!r} holds {text!r:.50}; it must be a list of words, each as text"
        text = " ".join(text)
    if not isinstance(text, str):
        return f"column {columns[0]!r} holds {text!r:.50}; it must be text"
    size = len(text)
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return f"column {columns[0]!r}: not valid Unicode (wrong encoding, or half a surrogate pair); use UTF-8"
    return too_long(max_bytes) if size > max_bytes else None


def doubled_fault(columns: Sequence[str], present: Sequence[str]) -> str | None:
    """What is wrong where one of the wanted ``columns`` is ``present`` more than once; None if none is."""
    doubled = next((column for column in columns if present.count(column) > 1), None)
    return None if doubled is None else f"{DOUBLED} {doubled!r}; remove or rename all but one"


def may_be_doubled(text: str, keys: Sequence[str], num_objects: int) -> bool:
    """Whether JSON of so many objects may have one of ``keys`` twice in one: rarely so where it has not.

    A key may be written with escapes, each a backslash and u.
    """
    return any(text.count(f'"{key}"') > num_objects for key in keys) or ESCAPED_KEY.search(text) is not None


def too_long(max_bytes: int) -> str:
    """What is wrong with a longer record."""
    return f"longer than {max_bytes / 2**20:g} MiB (data.cleaning.max_document_mib)"
