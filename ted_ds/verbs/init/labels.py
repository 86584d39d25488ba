"""What is to be predicted of a text, by what stands in the column with its label: names or a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ted_ds.verbs.init.kinds import MANY_LABELS, NUMBERS, ONE_LABEL
from ted_ds.verbs.init.rows import Rows

LABEL_COLUMNS = ("label", "labels", "target", "class", "category", "sentiment", "stars", "rating", "score")
"""What is called so holds what is to be predicted, the first that there is."""
MOST_LABELS = 200
"""Different values of a column: more are no names of labels, where nobody says that they are."""
FEW = 20
"""Different values, of which each may be one row's."""
NO_LABEL = "-100"


class Unusable(Exception):
    """A column is there, and a task cannot be learned of it."""

    def __init__(self, why: str, what_to_do: str | None = None) -> None:
        """Why, and what to do."""
        super().__init__(why)
        self.what_to_do = what_to_do


@dataclass(frozen=True)
class Names:
    """Of labels."""

    names: Sequence[str]
    reason: str
    """Where they are from."""


@dataclass(frozen=True)
class Labels:
    """A kind of task, with what its section says of labels."""

    kind: str
    section: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)
    what: str = ""
    """That is predicted, in words for behind the column's name."""


def labels_of(rows: Rows, column: str, kind: str | None) -> Labels:
    """What is predicted.

    Args:
        rows: The data.
        column: With labels.
        kind: That is asked for; None: as the values are.

    Raises:
        Unusable: These are no labels, or none of that kind.
    """
    values = [value for row in rows.rows if not _is_nothing(value := row.get(column))]
    if not values:
        raise Unusable(f"a column {column!r} for labels, but no row has one", "give each row its label")
    in_lists = any(_as_list(one) is not None for one in values)
    numbers = [*map(_as_number, values)]
    if kind is None:
        kind = MANY_LABELS if in_lists else NUMBERS if _are_measured(values, numbers) else ONE_LABEL
        is_asked_for = False
    else:
        is_asked_for = True
    if kind == NUMBERS:
        wrong = next((value for value, number in zip(values, numbers, strict=True) if number is None), None)
        if wrong is not None:
            raise Unusable(f"column {column!r} holds {wrong!r:.50}, which is no number", "give numbers")
        reasons = {"target_columns": "a number of each text"}
        return Labels(kind, {"target_columns": [column]}, reasons, ", a number")
    if in_lists != (kind == MANY_LABELS):
        what, other = ("a list", MANY_LABELS) if in_lists else ("one label", ONE_LABEL)
        raise Unusable(f"column {column!r} holds {what} in a row, such as {values[0]!r:.50}", f"use {other}")
    found = label_names(rows, column, in_lists=in_lists, is_asked_for=is_asked_for)
    reasons = {"label_column": "some labels of each text" if in_lists else "of each text", "labels": found.reason}
    return Labels(kind, {"label_column": column, "labels": found.names}, reasons)


def label_names(rows: Rows, column: str, *, in_lists: bool, is_asked_for: bool = False) -> Names:
    """Names of the labels in a column.

    Args:
        rows: The data.
        column: With labels.
        in_lists: Whether a row has a list of them.
        is_asked_for: Whether they are labels by the user's word, however many there are.

    Raises:
        Unusable: They are none.
    """
    declared = rows.declared.get(column)
    if declared:
        return Names([*declared], "as the data declare them")
    found = [row.get(column) for row in rows.rows]
    if in_lists:
        found = [one for value in found for one in (_as_list(value) or [])]
    found = [one for one in found if isinstance(one, str | int | float) and not _is_nothing(one)]
    values = [*dict.fromkeys(found)]
    if not values:
        raise Unusable(f"a column {column!r} for labels, but no row has one", "give each row its label")
    if len(values) == 1:
        raise Unusable(
            f"every label in {column!r} is {values[0]!r:.50}, of which nothing can be learned", "give rows with others"
        )
    if not is_asked_for:
        ways = f"--task {ONE_LABEL} if they are labels, --task {NUMBERS} if they are numbers to predict"
        if len(values) > MOST_LABELS:
            raise Unusable(f"{len(values):,} different values in {column!r}, too many for labels ({MOST_LABELS})", ways)
        if len(values) > FEW and 2 * len(values) > len(found):
            raise Unusable(f"nearly every row has a value of its own in {column!r}, so that it is no label", ways)
    return Names([*map(str, _in_order(values))], f"the {len(values)} that stand there")


def _in_order(values: Sequence[Any]) -> Iterable[Any]:
    """By their numbers where all are some, as ids are; else by the alphabet."""
    numbers = {one: _as_number(one) for one in values}
    if all(number is not None for number in numbers.values()):
        return sorted(values, key=lambda one: numbers[one] or 0.0)
    return sorted(values, key=str)


def _is_nothing(value: Any) -> bool:
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or (isinstance(value, str | int) and str(value) in ("", NO_LABEL))


def _as_list(value: Any) -> list[Any] | None:
    """That stands there as such, or as JSON, as it must in CSV."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _are_measured(values: Sequence[Any], numbers: Sequence[float | None]) -> bool:
    """Whether they are numbers, and not the ids of labels: with digits behind a point."""
    if any(one is None for one in numbers):
        return False
    if all(isinstance(one, float) for one in values):
        return True
    return any(one is not None and not one.is_integer() for one in numbers)
