"""What a row says about its text, for each kind of task that ends in a head of its own."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ted_ds.config.tasks import (
    HeadTask,
    LabelledTask,
    MultiLabelClassification,
    Regression,
    SequenceClassification,
    SoftLabelClassification,
)
from ted_ds.data.class_names import say_nothing
from ted_ds.errors import DataError

Label = int | list[float]
"""A class id; or a number for each of the model's outputs, NaN for a target that a row does not have."""
SUM_TOLERANCE = 1e-3
"""How far probabilities written with a few digits may be from a sum of 1."""
WHOLE_NUMBER = re.compile(r"(0|-?[1-9][0-9]*)(\.0+)?")
"""As text, the way JSON writes one; a column with gaps makes 3 a 3.0."""
UNLABELLED = -100
"""What transformers puts where a label is ignored."""
ClassNames = Mapping[str, Sequence[str]]
"""The names that the data declare for the ids in a column."""


def label_columns(task: HeadTask) -> list[str]:
    """The columns that hold labels."""
    return task.target_columns if isinstance(task, Regression) else [task.label_column]


def empty_text_fault(column: str, text: str) -> str | None:
    """What is wrong with a text that a label cannot be about; None if nothing is."""
    return None if text.strip() else f"column {column!r} holds {text!r:.20}; there is nothing in it to predict from"


def read_label(
    task: HeadTask, row: Mapping[str, Any], *, where: str, declared: ClassNames | None = None
) -> Label | None:
    """The label of a row; None where it has none: nothing, -100 or NaN.

    * one label: its id;
    * several: 1.0 for each label that holds, 0.0 for the others;
    * a distribution: its probabilities, brought to a sum of exactly 1;
    * regression: the numbers.

    Text may stand for each of them, as in CSV files. Label names are compared as text before anything is taken for a
    number; an id that the data themselves have ``declared`` a name for is that name.

    Raises:
        DataError: It is not what the task asks for; ``where`` begins the message.
    """
    if isinstance(task, Regression):
        numbers = [_target(row[column], f"{where}: column {column!r}") for column in task.target_columns]
        return None if all(map(math.isnan, numbers)) else numbers
    value = row[task.label_column]
    names = (declared or {}).get(task.label_column, ())
    if isinstance(task, SequenceClassification):
        return _label_id(value, task, where, names)
    if isinstance(value, str):
        value = _list_of(value)
    if _is_nothing(value):
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: label {value!r}: {task.kind} needs a list in column {task.label_column!r}")
    if isinstance(task, MultiLabelClassification):
        _refuse_vector(value, task, where, are_ids=bool(names))
        holding = {_label_id(one, task, where, names) for one in value}
        if None in holding:
            raise DataError(
                f"{where}: label {list(value)!r}: one of them is none; list those that hold, or none at all"
            )
        return [float(index in holding) for index in range(len(task.labels))]
    return _distribution(value, task, where)


def _refuse_vector(value: Sequence[Any], task: MultiLabelClassification, where: str, *, are_ids: bool) -> None:
    """A 0 or 1 for each label would pass for the ids of two labels; not where the data say that they ``are_ids``."""
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    names = task.data_labels or task.labels
    if len(set(numbers)) < len(numbers) or any(
        isinstance(one, float) and not set(_as_texts(one)) & set(names) for one in numbers
    ):
        raise DataError(
            f"{where}: label {list(value)!r}: list the names or ids of the labels that hold, each once, not a number "
            "for every label"
        )
    bits = [one for one in value if one not in names and _whole_number(one) in (0, 1)]
    if not are_ids and len(value) == len(bits) == len(names):
        raise DataError(
            f"{where}: label {list(value)!r}: as many numbers 0 or 1 as there are labels may be ids, or a yes or no "
            f"for each; list the names of those that hold, such as {names[:1]!r}"
        )


def _list_of(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) or _is_nothing(found) else text


def _is_nothing(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return value is None or value == "" or value == UNLABELLED or (isinstance(value, float) and math.isnan(value))


def _label_id(value: Any, task: LabelledTask, where: str, declared: Sequence[str]) -> int | None:
    names = task.data_labels or task.labels
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise DataError(
            f"{where}: label {value!r:.200} is a list, where one name or id is wanted; write it without [ ]"
        )
    number = _whole_number(value)
    if declared and number is not None and value not in declared:
        if number == -1:  # how datasets writes a row without a label
            return None
        counts = not say_nothing(declared) or not set(names).isdisjoint(declared)
        if counts and 0 <= number < len(declared):
            return _declared_id(value, declared[number], declared, names, where)
    found = {names.index(text) for text in _as_texts(value) if text in names}
    if len(found) == 1:
        return found.pop()
    if _is_nothing(value) or number == UNLABELLED:
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


def _as_texts(value: Any) -> tuple[str, ...]:
    """How a value may be written as a name."""
    if isinstance(value, str):
        number = WHOLE_NUMBER.fullmatch(value)
        return (value,) if number is None or number[1] == value else (value, number[1])
    if isinstance(value, bool):
        return (str(value), str(value).lower())
    if isinstance(value, float) and value.is_integer():
        return (repr(value), str(int(value)))
    return (str(value),) if isinstance(value, int | float) else ()


def _whole_number(value: Any) -> int | None:
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


def _distribution(value: Sequence[Any], task: SoftLabelClassification, where: str) -> list[float]:
    if value and all(map(_is_nothing, value)):
        raise DataError(
            f"{where}: label {list(value)!r}: no probability at all; for a row without a label write null, or nothing, "
            "in the place of the list"
        )
    numbers = [_number(one, f"{where}: column {task.label_column!r}") for one in value]
    total = sum(numbers)
    if len(numbers) != len(task.labels) or min(numbers, default=-1) < 0 or abs(total - 1) > SUM_TOLERANCE:
        raise DataError(
            f"{where}: label {list(value)!r}: give {len(task.labels)} probabilities, one for each of {task.labels}, "
            "none below 0, with a sum of 1"
        )
    return [one / total for one in numbers]


def _target(value: Any, where: str) -> float:
    """The number, NaN where there is none."""
    is_nan = isinstance(value, str) and value.strip().lower() == "nan"
    return math.nan if is_nan or _is_nothing(value) or _whole_number(value) == UNLABELLED else _number(value, where)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)  # CSV columns come as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value) or not math.isfinite(number):
        raise DataError(f"{where}: {value!r} is not a finite number; give one, or nothing where there is none")
    return number
