"""Any number of labels per text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import MultiLabelClassification
from ted_ds.errors import DataError
from ted_ds.tasks.base import HeadKind
from ted_ds.tasks.guess import Guess, entropy_terms
from ted_ds.tasks.label_values import as_texts, label_id, read_list, whole_number
from ted_ds.tasks.observations import Observation, joined, sklearn_metrics
from ted_ds.tasks.outcomes import ONE, Outcomes

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms


class MultiLabelClassificationKind(HeadKind[MultiLabelClassification]):
    """See :class:`ted_ds.config.tasks.MultiLabelClassification`."""

    collated_as = "numbers"
    problem_type = "multi_label_classification"

    def read_label(
        self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]] = {}
    ) -> list[float] | None:
        """1.0 for each label that holds, 0.0 for the others."""
        value = read_list(self.task, row, where=where)
        if value is None:
            return None
        names, theirs = self.task.data_labels or self.task.labels, declared.get(self.task.label_column, ())
        _refuse_vector(value, names, where, are_ids=bool(theirs))
        holding = {label_id(one, names, where, theirs) for one in value}
        if None in holding:
            raise DataError(
                f"{where}: label {list(value)!r}: one of them is none; list those that hold, or none at all"
            )
        return [float(index in holding) for index in range(len(names))]

    @property
    def terms(self) -> TaskTerms:
        """Binary cross-entropy, and Bernoulli KL, of each label."""
        from ted_ds.numerics.task_terms import MULTI_LABEL_CLASSIFICATION

        return MULTI_LABEL_CLASSIFICATION

    @property
    def scorer(self) -> MultiLabel:
        """By micro F1."""
        return MultiLabel(self.terms)

    def guess(self, labels: Sequence[Sequence[float]], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """Each label as probable as not."""
        rates = np.asarray(labels).mean(axis=0)
        prior = float((entropy_terms(rates) + entropy_terms(1 - rates)).mean())
        return Guess(math.log(2), "one half for each label", prior)


def _refuse_vector(value: Sequence[Any], names: Sequence[str], where: str, *, are_ids: bool) -> None:
    """A 0 or 1 for each label would pass for the ids of two labels; not where the data say that they ``are_ids``."""
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(set(numbers)) < len(numbers) or any(
        isinstance(one, float) and not set(as_texts(one)) & set(names) for one in numbers
    ):
        raise DataError(
            f"{where}: label {list(value)!r}: list the names or ids of the labels that hold, each once, not a number "
            "for every label"
        )
    bits = [one for one in value if one not in names and whole_number(one) in (0, 1)]
    if not are_ids and len(value) == len(bits) == len(names):
        raise DataError(
            f"{where}: label {list(value)!r}: as many numbers 0 or 1 as there are labels may be ids, or a yes or no "
            f"for each; list the names of those that hold, such as {names[:1]!r}"
        )


class MultiLabel:
    """Micro and macro F1 at a probability of one half, exact matches; the loss is binary cross-entropy per label."""

    headline = "f1_micro"
    higher_is_better = True

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Which labels are predicted and which hold, row by row."""
        labels = batch.labels
        kept = self._terms.kept(labels).all(-1)
        loss = float(self._terms.loss_sum(outputs, labels))
        return (outputs[kept] > 0).int().tolist(), labels[kept].int().tolist(), loss

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        predictions, labels, loss = joined(observations)
        metrics = sklearn_metrics()
        return {
            "f1_micro": float(metrics.f1_score(labels, predictions, average="micro", zero_division=0)),
            "f1_macro": float(metrics.f1_score(labels, predictions, average="macro", zero_division=0)),
            "exact_match": float(metrics.accuracy_score(labels, predictions)),
            "loss": loss / np.asarray(labels).size,
            "num_examples": len(labels),
        }

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:
        """How many labels of each example are right, found and there."""
        predictions, labels, _ = joined(observations)
        columns = {
            "right": (predictions * labels).sum(axis=-1),
            "found": predictions.sum(axis=-1),
            "there": labels.sum(axis=-1),
            "exact": (predictions == labels).all(axis=-1).astype(int),
        }
        metrics = {"f1_micro": ["f1", "right", "found", "there"], "exact_match": ["ratio", "exact", ONE]}
        return Outcomes({name: column.tolist() for name, column in columns.items()}, metrics)
