"""Accuracy, macro F1 and Matthews correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from ted_ds.numerics.losses import cross_entropy_sum, kept_labels

Observation = tuple[list[int], list[int], float]


def observe(logits: Tensor, labels: Tensor) -> Observation:
    """Predictions, labels and summed cross-entropy of a batch's kept rows."""
    kept = kept_labels(labels)
    predictions = logits[kept].argmax(-1).tolist()
    return predictions, labels[kept].tolist(), float(cross_entropy_sum(logits, labels))


def score(observations: Sequence[Observation]) -> dict[str, float]:
    """Metrics over everything observed."""
    predictions = [one for observation in observations for one in observation[0]]
    labels = [one for observation in observations for one in observation[1]]
    f1: Any = f1_score  # its stub allows only "warn" for zero_division
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1_macro": float(f1(labels, predictions, average="macro", zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
        "loss": sum(observation[2] for observation in observations) / len(labels),
        "num_examples": len(labels),
    }
