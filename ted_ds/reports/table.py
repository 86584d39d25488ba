"""A table of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of words, the first column of each a name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float | None]] | None = None
    """Of cells behind the first, from 0 to 1: the better, the darker; None for none."""
    note: str = ""
