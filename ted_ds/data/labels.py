"""What a row says about its text, for each kind of task that ends in a head of its own."""

from __future__ import annotations

import math
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
from ted_ds.errors import DataError

Label = int | list[float]
"""A class id; or a number for each of the model's outputs."""
SUM_TOLERANCE = 1e-3
"""How far probabilities written with a few digits may be from a sum of 1."""


def label_columns(task: HeadTask) -> list[str]:
    """The columns that hold labels."""
    return task.target_columns if isinstance(task, Regression) else [task.label_column]


def read_label(task: HeadTask, row: Mapping[str, Any], *, where: str) -> Label:
    """The label of a row.

    * one label: its id;
    * several: 1.0 for each label that holds, 0.0 for the others;
    * a distribution: its probabilities, brought to a sum of exactly 1;
    * regression: the numbers.

    Raises:
        DataError: It is not what the task asks for; ``where`` begins the message.
    """
    if isinstance(task, Regression):
        return [_number(row[column], f"{where}: column {column!r}") for column in task.target_columns]
    value = row[task.label_column]
    if isinstance(task, SequenceClassification):
        return _label_id(value, task, where)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: label {value!r}: {task.kind} needs a list in column {task.label_column!r}")
    if isinstance(task, MultiLabelClassification):
        holding = {_label_id(one, task, where) for one in value}
        return [float(index in holding) for index in range(len(task.labels))]
    return _distribution(value, task, where)


def _label_id(value: Any, task: LabelledTask, where: str) -> int:
    if value in task.labels:
        return task.labels.index(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(task.labels):
        raise DataError(
            f"{where}: label {value!r} is unknown; use one of {task.labels} or its id 0..{len(task.labels) - 1}"
        )
    if str(value) in task.labels and task.labels.index(str(value)) != value:  # CSV makes numbers of names such as "1"
        raise DataError(
            f"{where}: label {value} is the id of {task.labels[value]!r} and the name of another label; choose names "
            "in task.labels that are no numbers"
        )
    return value


def _distribution(value: Sequence[Any], task: SoftLabelClassification, where: str) -> list[float]:
    numbers = [_number(one, f"{where}: column {task.label_column!r}") for one in value]
    total = sum(numbers)
    if len(numbers) != len(task.labels) or min(numbers, default=-1) < 0 or abs(total - 1) > SUM_TOLERANCE:
        raise DataError(
            f"{where}: label {list(value)!r}: give {len(task.labels)} probabilities, one for each of {task.labels}, "
            "none below 0, with a sum of 1"
        )
    return [one / total for one in numbers]


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)  # CSV columns may come as text
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise DataError(f"{where}: {value!r} is not a finite number; every row needs one")
    return number
