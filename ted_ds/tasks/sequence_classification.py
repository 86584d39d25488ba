"""Scores of tasks with labels: one per text, a distribution over them, or any number of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ted_ds.numerics.losses import binary_cross_entropy_sum, cross_entropy_sum, kept_labels, soft_cross_entropy_sum

Observation = tuple[list[Any], list[Any], float]
"""Predictions and labels of the kept rows, and the summed loss."""


class SingleLabel:
    """Accuracy, macro F1 and Matthews correlation; the loss is cross-entropy per example."""

    headline = "accuracy"
    higher_is_better = True

    def observe(self, logits: Tensor, labels: Tensor) -> Observation:
        """Predicted and given class ids."""
        kept = kept_labels(labels)
        return logits[kept].argmax(-1).tolist(), labels[kept].tolist(), float(cross_entropy_sum(logits, labels))

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        predictions, labels, loss = _joined(observations)
        metrics = _sklearn_metrics()
        return {
            "accuracy": float(metrics.accuracy_score(labels, predictions)),
            "f1_macro": float(metrics.f1_score(labels, predictions, average="macro", zero_division=0)),
            "matthews_correlation": float(metrics.matthews_corrcoef(labels, predictions)),
            "loss": loss / len(labels),
            "num_examples": len(labels),
        }


class SoftLabel(SingleLabel):
    """As for one label, against the most probable one; the loss is cross-entropy to the distribution."""

    def observe(self, logits: Tensor, labels: Tensor) -> Observation:
        """Predicted and most probable class ids."""
        kept = kept_labels(labels).all(-1)
        loss = float(soft_cross_entropy_sum(logits, labels))
        return logits[kept].argmax(-1).tolist(), labels[kept].argmax(-1).tolist(), loss


class MultiLabel:
    """Micro and macro F1 at a probability of one half, exact matches; the loss is binary cross-entropy per label."""

    headline = "f1_micro"
    higher_is_better = True

    def observe(self, logits: Tensor, labels: Tensor) -> Observation:
        """Which labels are predicted and which hold, row by row."""
        kept = kept_labels(labels).all(-1)
        loss = float(binary_cross_entropy_sum(logits, labels))
        return (logits[kept] > 0).int().tolist(), labels[kept].int().tolist(), loss

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed."""
        predictions, labels, loss = _joined(observations)
        metrics = _sklearn_metrics()
        return {
            "f1_micro": float(metrics.f1_score(labels, predictions, average="micro", zero_division=0)),
            "f1_macro": float(metrics.f1_score(labels, predictions, average="macro", zero_division=0)),
            "exact_match": float(metrics.accuracy_score(labels, predictions)),
            "loss": loss / np.asarray(labels).size,
            "num_examples": len(labels),
        }


def _joined(observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, float]:
    predictions = np.asarray([one for observation in observations for one in observation[0]])
    labels = np.asarray([one for observation in observations for one in observation[1]])
    return predictions, labels, sum(observation[2] for observation in observations)


def _sklearn_metrics() -> Any:
    """Imported where something is scored: it takes most of a second, on every rank of every run."""
    from sklearn import metrics

    return metrics
