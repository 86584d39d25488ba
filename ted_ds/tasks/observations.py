"""What scorers of texts with labels keep of each batch, and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Observation = tuple[list[Any], list[Any], float]
"""Predictions and labels of the kept rows, and the summed loss."""


def joined(observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, float]:
    """All of them."""
    predictions = np.asarray([one for observation in observations for one in observation[0]])
    labels = np.asarray([one for observation in observations for one in observation[1]])
    return predictions, labels, sum(observation[2] for observation in observations)


def sklearn_metrics() -> Any:
    """Imported where something is scored: it takes most of a second, on every rank of every run."""
    from sklearn import metrics

    return metrics
