"""What stands in a row under the name of a column, or under a dotted path of keys such as ``answers.text``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ted_ds.config.json_object import JsonObject

MISSING = object()


def value_at(row: Any, path: str) -> Any:
    """What a path leads to; :data:`MISSING` where it leads nowhere.

    A key with dots in its own name goes before a path. A list on the way gives the list of what is in its elements, and
    nothing on the way gives nothing.
    """
    if isinstance(row, list):
        found = [value_at(one, path) for one in row]
        return MISSING if any(value is MISSING for value in found) else found
    if not isinstance(row, dict):
        return None if row is None else MISSING
    if path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    return value_at(row[first], rest) if dot and first in row else MISSING


def picked(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The values of ``columns``, by these names; all of the row without any, or where one is missing, to be named."""
    if not columns:
        return row
    if row.keys() >= set(columns):
        return {name: row[name] for name in columns}
    found = {name: value_at(row, name) for name in columns}
    return row if any(value is MISSING for value in found.values()) else found


def roots(columns: Sequence[str], present: Sequence[str]) -> list[str]:
    """The columns of a table that ``columns`` are in, each once."""
    return [*dict.fromkeys(name if name in present else name.partition(".")[0] for name in columns)]


def keys_of(columns: Sequence[str]) -> list[str]:
    """Every key that may stand on the way to ``columns``."""
    return [*dict.fromkeys(key for name in columns for key in (name, *name.split(".")))]


def doubled_key(row: Any, path: str) -> str | None:
    """The key on the way to ``path`` that an object was given more than once, as a path; None if none was."""
    if isinstance(row, list):
        return next((key for one in row if (key := doubled_key(one, path)) is not None), None)
    if not isinstance(row, JsonObject):
        return None
    first, dot, rest = path.partition(".")
    name = path if path in row or not dot else first
    if row.keys_given.count(name) > 1:
        return name
    below = doubled_key(row.get(first), rest) if name != path else None
    return None if below is None else f"{first}.{below}"
