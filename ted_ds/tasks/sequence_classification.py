"""One label per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import SequenceClassification
from ted_ds.data.samples import Label, Sample
from ted_ds.tasks.base import HeadKind
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.label_values import label_id
from ted_ds.tasks.observations import Observation, joined, sklearn_metrics
from ted_ds.tasks.outcomes import ONE, Outcomes
from ted_ds.tasks.weighing import weighed, weights_in_words, with_balance

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms


class SequenceClassificationKind(HeadKind[SequenceClassification]):
    """See :class:`ted_ds.config.tasks.SequenceClassification`."""

    collated_as = "class"
    one_class = True
    problem_type = "single_label_classification"

    def read_label(
        self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]] = {}
    ) -> int | None:
        """The label's id."""
        column = self.task.label_column
        return label_id(row[column], self.task.data_labels or self.task.labels, where, declared.get(column, ()))

    def counted(self, label: Label | None) -> list[str]:
        """Its name."""
        return [self.task.labels[label] if isinstance(label, int) else "none"]

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the labels."""
        from ted_ds.numerics.task_terms import SEQUENCE_CLASSIFICATION

        return SEQUENCE_CLASSIFICATION

    @property
    def training_terms(self) -> TaskTerms:
        """With class weights and label smoothing, where the recipe has them."""
        return weighed(self.terms, self.task)

    def settled(self, train: Sequence[Sample]) -> SequenceClassification:
        """With class weights that are balanced as numbers."""
        return with_balance(self.task, [sample.label for sample in train if isinstance(sample.label, int)])

    @property
    def weights_in_words(self) -> str | None:
        """The class weights."""
        return weights_in_words(self.task)

    @property
    def scorer(self) -> SingleLabel:
        """By accuracy."""
        return SingleLabel(self.terms, num_labels=self.task.num_outputs)

    def guess(self, labels: Sequence[int], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the labels."""
        count = self.task.num_outputs
        return one_of(count, np.bincount(np.asarray(labels), minlength=count) / len(labels))


class SingleLabel:
    """Accuracy, macro F1 and Matthews correlation; the loss is cross-entropy per example.

    Of two labels there is F1 of the second as well: the one that is looked for, such as ``duplicate`` beside
    ``not_duplicate`` in GLUE.
    """

    headline = "accuracy"
    higher_is_better = True

    def __init__(self, terms: TaskTerms, *, num_labels: int) -> None:
        self._terms, self._num_labels = terms, num_labels

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Predicted and given class ids."""
        labels = batch.labels
        kept = self._terms.kept(labels)
        loss = float(self._terms.loss_sum(outputs, labels))
        return outputs[kept].argmax(-1).tolist(), self._ids(labels[kept]).tolist(), loss

    def _ids(self, labels: Tensor) -> Tensor:
        return labels

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        predictions, labels, loss = joined(observations)
        metrics = sklearn_metrics()
        f1 = {"f1": float(metrics.f1_score(labels, predictions, zero_division=0))} if self._num_labels == 2 else {}
        return {
            "accuracy": float(metrics.accuracy_score(labels, predictions)),
            **f1,
            "f1_macro": float(metrics.f1_score(labels, predictions, average="macro", zero_division=0)),
            "matthews_correlation": float(metrics.matthews_corrcoef(labels, predictions)),
            "loss": loss / len(labels),
            "num_examples": len(labels),
        }

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:
        """What each example was taken for."""
        predictions, labels, _ = joined(observations)
        columns = {"prediction": predictions, "label": labels, "right": (predictions == labels).astype(int)}
        metrics: dict[str, list[str]] = {
            "accuracy": ["ratio", "right", ONE],
            "f1_macro": ["f1_macro", "prediction", "label"],
            "matthews_correlation": ["matthews_correlation", "prediction", "label"],
        }
        if self._num_labels == 2:  # ids are 0 and 1, so that a column of them counts the second label
            columns["right_second"] = predictions * labels
            metrics["f1"] = ["f1", "right_second", "prediction", "label"]
        return Outcomes({name: column.tolist() for name, column in columns.items()}, metrics)
