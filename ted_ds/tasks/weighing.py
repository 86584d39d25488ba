"""Class weights and label smoothing of a task loss."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ted_ds.config.tasks import OneOfLabels

if TYPE_CHECKING:
    from ted_ds.numerics.task_terms import TaskTerms


def weighed(terms: TaskTerms, task: OneOfLabels) -> TaskTerms:
    """``terms`` with the class weights and label smoothing of a recipe in the task loss, where it has some."""
    if task.class_weights is None and task.label_smoothing is None:
        return terms
    from ted_ds.numerics.task_terms import WeighedCrossEntropy

    weights = task.class_weights or [1.0] * len(task.labels)
    return replace(terms, loss_sum=WeighedCrossEntropy(tuple(weights), task.label_smoothing or 0.0))
