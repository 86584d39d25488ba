"""Class weights and label smoothing of a task loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ted_ds.config.tasks import OneOfLabels
from ted_ds.config.tasks.base import BALANCED
from ted_ds.errors import DataError

if TYPE_CHECKING:
    from ted_ds.numerics.task_terms import TaskTerms

Task = TypeVar("Task", bound=OneOfLabels)


def weighed(terms: TaskTerms, task: OneOfLabels) -> TaskTerms:
    """``terms`` with the class weights and label smoothing of a recipe in the task loss, where it has some."""
    if task.class_weights is None and task.label_smoothing is None:
        return terms
    from ted_ds.numerics.task_terms import WeighedCrossEntropy

    weights = task.class_weights or [1.0] * len(task.labels)
    assert isinstance(weights, list), "balanced weights are numbers once the data are read"
    return replace(terms, loss_sum=WeighedCrossEntropy(tuple(weights), task.label_smoothing or 0.0))


def with_balance(task: Task, ids: Sequence[int]) -> Task:
    """The section with the numbers that ``balanced`` weights come to; as it is where it has others, or none.

    Args:
        task: The section.
        ids: Of all labels in the training data: what the task loss is summed over in an epoch.

    Raises:
        DataError: A label is not among them.
    """
    if task.class_weights != BALANCED:
        return task
    from sklearn.utils.class_weight import compute_class_weight

    there = {*ids}
    missing = [name for index, name in enumerate(task.labels) if index not in there]
    if missing:
        raise DataError(
            f"task.class_weights: {BALANCED}: the training data have no label {missing[0]!r}, which no weight would "
            "balance; give numbers, or remove it from task.labels"
        )
    weights = compute_class_weight(BALANCED, classes=np.arange(len(task.labels)), y=ids)
    return task.model_copy(update={"class_weights": [float(one) for one in weights]})


def weights_in_words(task: OneOfLabels) -> str | None:
    """The class weights, by their labels; None where there are none."""
    if task.class_weights is None:
        return None
    numbers = zip(task.labels, task.class_weights, strict=True)
    return ", ".join(f"{name} {weight:.4g}" for name, weight in numbers)
