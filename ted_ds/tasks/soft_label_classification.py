"""A distribution over the labels per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import SoftLabelClassification
from ted_ds.errors import DataError
from ted_ds.tasks.base import HeadKind
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.label_values import is_nothing, read_list, read_number
from ted_ds.tasks.sequence_classification import SingleLabel

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.numerics.task_terms import TaskTerms

SUM_TOLERANCE = 1e-3
"""How far probabilities written with a few digits may be from a sum of 1."""


class SoftLabelClassificationKind(HeadKind[SoftLabelClassification]):
    """See :class:`ted_ds.config.tasks.SoftLabelClassification`."""

    collated_as = "numbers"
    one_class = True
    problem_type = "single_label_classification"

    def read_label(
        self,
        row: Mapping[str, Any],
        *,
        where: str,
        declared: Mapping[str, Sequence[str]] = {},  # noqa: ARG002 - as others do
    ) -> list[float] | None:
        """The probabilities, brought to a sum of exactly 1."""
        value = read_list(self.task, row, where=where)
        return None if value is None else self._distribution(value, where)

    def _distribution(self, value: Sequence[Any], where: str) -> list[float]:
        if value and all(map(is_nothing, value)):
            raise DataError(
                f"{where}: label {list(value)!r}: no probability at all; for a row without a label write null, or "
                "nothing, in the place of the list"
            )
        labels = self.task.labels
        numbers = [read_number(one, f"{where}: column {self.task.label_column!r}") for one in value]
        total = sum(numbers)
        if len(numbers) != len(labels) or min(numbers, default=-1) < 0 or abs(total - 1) > SUM_TOLERANCE:
            raise DataError(
                f"{where}: label {list(value)!r}: give {len(labels)} probabilities, one for each of {labels}, none "
                "below 0, with a sum of 1"
            )
        return [one / total for one in numbers]

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy to the distribution, and KL over the labels."""
        from ted_ds.numerics.task_terms import SOFT_LABEL_CLASSIFICATION

        return SOFT_LABEL_CLASSIFICATION

    @property
    def scorer(self) -> SoftLabel:
        """By accuracy."""
        return SoftLabel(self.terms, num_labels=self.task.num_outputs)

    def guess(self, labels: Sequence[Sequence[float]], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the labels."""
        return one_of(self.task.num_outputs, np.asarray(labels).mean(axis=0))


class SoftLabel(SingleLabel):
    """As for one label, against the most probable one; the loss is cross-entropy to the distribution."""

    def _ids(self, labels: Tensor) -> Tensor:
        return labels.argmax(-1)
