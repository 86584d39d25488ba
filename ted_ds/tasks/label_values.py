"""Values in the rows of labelled sets, as data write them: label names and ids, numbers, lists, and nothing at all."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ted_ds.config.tasks import MultiLabelClassification, SoftLabelClassification
from ted_ds.data.class_names import say_nothing
from ted_ds.data.samples import UNLABELLED
from ted_ds.errors import DataError

WHOLE_NUMBER = re.compile(r"(0|-?[1-9][0-9]*)(\.0+)?")
"""As text, the way JSON writes one; a column with gaps makes 3 a 3.0."""


def list_of(text: str) -> Any:
    """The list, or nothing, that a text stands for; else the text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) or is_nothing(found) else text


def read_list(
    task: MultiLabelClassification | SoftLabelClassification, row: Mapping[str, Any], *, where: str
) -> Sequence[Any] | None:
    """The list in a row's label column, as such or as text; None where there is none.

    Raises:
        DataError: Something else is there.
    """
    value = row[task.label_column]
    if isinstance(value, str):
        value = list_of(value)
    if is_nothing(value):
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: label {value!r}: {task.kind} needs a list in column {task.label_column!r}")
    return value


def is_nothing(value: Any) -> bool:
    """Whether a value stands for none."""
    if isinstance(value, bool):
        return False
    return value is None or value == "" or value == UNLABELLED or (isinstance(value, float) and math.isnan(value))


def label_id(value: Any, names: Sequence[str], where: str, declared: Sequence[str]) -> int | None:
    """The id of a label that is given by its name or id; None where there is none.

    Args:
        value: As it stands in the row.
        names: What the data call the labels, in the order of their ids.
        where: Begins the message.
        declared: Names that the data themselves declare for the ids in this column.

    Raises:
        DataError: It is no label.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise DataError(
            f"{where}: label {value!r:.200} is a list, where one name or id is wanted; write it without [ ]"
        )
    number = whole_number(value)
    if declared and number is not None and value not in declared:
        if number == -1:  # how datasets writes a row without a label
            return None
        counts = not say_nothing(declared) or not set(names).isdisjoint(declared)
        if counts and 0 <= number < len(declared):
            return _declared_id(value, declared[number], declared, names, where)
    found = {names.index(text) for text in as_texts(value) if text in names}
    if len(found) == 1:
        return found.pop()
    if is_nothing(value) or number == UNLABELLED:
        return None
    clashing = _names_that_are_other_ids(tuple(names))
    if number is not None and not clashing and 0 <= number < len(names):
        return number
    ids = f" or its id 0..{len(names) - 1}"
    if clashing:
        ids = f", not an id: {clashing[0]!r} among them is a number, and another one than its id"
    raise DataError(f"{where}: label {value!r} is unknown; use one of {names}{ids}")


def _declared_id(value: Any, name: str, declared: Sequence[str], names: Sequence[str], where: str) -> int:
    if name in names:
        return names.index(name)
    raise DataError(
        f"{where}: label {value!r} is {name!r} to the data, which declare {list(declared)}; task.labels are "
        f"{list(names)}. Give task.labels the same names, in the order of the model's ids, or set task.data_labels to "
        "what the data call each of task.labels, in their order"
    )


def as_texts(value: Any) -> tuple[str, ...]:
    """How a value may be written as a name."""
    if isinstance(value, str):
        number = WHOLE_NUMBER.fullmatch(value)
        return (value,) if number is None or number[1] == value else (value, number[1])
    if isinstance(value, bool):
        return (str(value), str(value).lower())
    if isinstance(value, float) and value.is_integer():
        return (repr(value), str(int(value)))
    return (str(value),) if isinstance(value, int | float) else ()


def whole_number(value: Any) -> int | None:
    """The whole number that a value, or a text, is; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    match = WHOLE_NUMBER.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1])


@functools.cache
def _names_that_are_other_ids(names: tuple[str, ...]) -> list[str]:
    """Names that a number could mean as well as an id, each the id of another label."""
    clashing = []
    for index, name in enumerate(names):
        try:
            number = float(name)  # 01, too, once was 1
        except ValueError:
            continue
        if number in range(len(names)) and number != index:
            clashing.append(name)
    return clashing


def read_number(value: Any, where: str) -> float:
    """The finite number that a value, or a text, is.

    Raises:
        DataError: It is none.
    """
    try:
        number = float(value)  # CSV columns come as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value) or not math.isfinite(number):
        raise DataError(f"{where}: {value!r} is not a finite number; give one, or nothing where there is none")
    return number
