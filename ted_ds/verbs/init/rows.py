"""Rows whose columns are looked for by name, in whatever case their names are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Rows:
    """What is known of data and teacher when their task is looked for."""

    rows: Sequence[Mapping[str, Any]]
    declared: Mapping[str, Sequence[str]]
    """Names that the data declare for the ids in a column."""
    language_model: str
    """What the teacher is as one."""
    only: frozenset[str] | None = None
    """The columns that count; None: all."""

    @cached_property
    def columns(self) -> list[str]:
        """Of any row, as they are written."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in found if self.only is None or name in self.only]

    def among(self, columns: Iterable[str]) -> Rows:
        """The same with these columns alone."""
        return replace(self, only=frozenset(columns))

    def named(self, name: str) -> str | None:
        """The column of a name, as it is written; None where there is none."""
        alike = [one for one in self.columns if one.strip().lower() == name]
        return name if name in alike else next(iter(alike), None)

    def first(self, names: Sequence[str]) -> str | None:
        """The first column that there is, as it is written."""
        return next((found for name in names if (found := self.named(name)) is not None), None)

    def is_text(self, column: str) -> bool:
        """Whether a text stands wherever something does."""
        values = [row[column] for row in self.rows if row.get(column) is not None]
        return bool(values) and all(isinstance(one, str) for one in values)

    def holds_lists(self, column: str) -> bool:
        """Whether a list stands in some row."""
        return any(isinstance(row.get(column), list) for row in self.rows)
