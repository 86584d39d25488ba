"""Text for as many columns as there are: lines go on below what their label says, and nothing is cut off."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

LABEL = re.compile(r"\S+\s+")
"""What a line begins with."""
HANGING = 4
"""Columns that a line goes on at, where its label is none or takes more than half of the width."""


def columns_of(stream: TextIO) -> int | None:
    """Columns of what is written to a stream: what ``$COLUMNS`` says, or its terminal has; None where there are none.

    Files have none: lines in them stay whole, and can be searched.
    """
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:  # no terminal, or no file at all
        return None


def wrapped(text: str, columns: int | None) -> str:
    """Break lines that are longer than so many columns between their words; None leaves them as they are.

    Each goes on below what follows its first word, which says what it is about. A word that is longer than a line, as
    a path may be, is left whole.
    """
    if columns is None:
        return text
    return "\n".join(_filled(line, columns, indent=_label_of(line)) for line in text.split("\n"))


def below(label: str, text: str, columns: int | None) -> str:
    """A line of a label and what is said of it, which goes on below itself; else as :func:`wrapped`."""
    return label + text if columns is None else _filled(label + text, columns, indent=len(label))


def _label_of(line: str) -> int:
    match = LABEL.match(line)
    return HANGING if match is None else match.end()


def _filled(line: str, columns: int, *, indent: int) -> str:
    if len(line) <= columns:
        return line
    return textwrap.fill(
        line,
        columns,
        subsequent_indent=" " * (indent if indent <= columns // 2 else HANGING),
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
