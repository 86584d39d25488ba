"""Scores of regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from ted_ds.numerics.losses import kept_labels

Observation = tuple[list[list[float]], list[list[float]]]
"""Outputs and targets of the rows that have a target; NaN for one they do not have."""


class RegressionScores:
    """Mean squared error per target a row has, and Pearson's and Spearman's correlation, averaged over targets."""

    headline = "pearson"
    higher_is_better = True

    def observe(self, outputs: Tensor, targets: Tensor) -> Observation:
        """Outputs and targets, row by row."""
        kept = kept_labels(targets).any(-1)
        return outputs[kept].float().tolist(), targets[kept].tolist()

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed. Correlations with a constant are 0."""
        outputs = np.asarray([one for observation in observations for one in observation[0]])
        targets = np.asarray([one for observation in observations for one in observation[1]])
        kept = ~np.isnan(targets)
        pairs = [(mine[has], theirs[has]) for mine, theirs, has in zip(outputs.T, targets.T, kept.T, strict=True)]
        varied = [pair for pair in pairs if all(len(side) and np.ptp(side) > 0 for side in pair)]
        pearson: list[Any] = [pearsonr(*pair) for pair in varied]
        spearman: list[Any] = [spearmanr(*pair) for pair in varied]
        return {
            "pearson": float(sum(one.statistic for one in pearson) / len(pairs)),
            "spearman": float(sum(one.statistic for one in spearman) / len(pairs)),
            "loss": float(np.square(outputs - targets)[kept].mean()),
            "num_examples": len(targets),
        }
