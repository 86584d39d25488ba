"""One or more numbers per text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ted_ds.config.tasks import Regression
from ted_ds.data.samples import UNLABELLED
from ted_ds.tasks.base import HeadKind
from ted_ds.tasks.guess import Guess
from ted_ds.tasks.label_values import is_nothing, read_number, whole_number
from ted_ds.tasks.outcomes import Outcomes

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms

Observation = tuple[list[list[float]], list[list[float]]]
"""Outputs and targets of the rows that have a target; NaN for one they do not have."""


class RegressionKind(HeadKind[Regression]):
    """See :class:`ted_ds.config.tasks.Regression`."""

    collated_as = "numbers"
    problem_type = "regression"

    @property
    def label_columns(self) -> list[str]:
        """Those of the targets."""
        return self.task.target_columns

    def read_label(
        self,
        row: Mapping[str, Any],
        *,
        where: str,
        declared: Mapping[str, Sequence[str]] = {},  # noqa: ARG002 - as others do
    ) -> list[float] | None:
        """The numbers; NaN for each that a row does not have."""
        numbers = [_target(row[column], f"{where}: column {column!r}") for column in self.task.target_columns]
        return None if all(map(math.isnan, numbers)) else numbers

    @property
    def terms(self) -> TaskTerms:
        """Squared errors, and squared differences."""
        from ted_ds.numerics.task_terms import REGRESSION

        return REGRESSION

    @property
    def scorer(self) -> RegressionScores:
        """By Pearson's correlation."""
        return RegressionScores(self.terms)

    def guess(self, labels: Sequence[Sequence[float]], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """The mean of each target."""
        targets = np.asarray(labels, dtype=float)  # a row may lack some
        kept = ~np.isnan(targets)
        means = np.where(kept, targets, 0).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)
        return Guess(float(np.square(targets - means)[kept].mean()), "the mean")


def _target(value: Any, where: str) -> float:
    """The number, NaN where there is none."""
    is_nan = isinstance(value, str) and value.strip().lower() == "nan"
    return math.nan if is_nan or is_nothing(value) or whole_number(value) == UNLABELLED else read_number(value, where)


class RegressionScores:
    """Mean squared error per target a row has, and Pearson's and Spearman's correlation, averaged over targets."""

    headline = "pearson"
    higher_is_better = True

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Outputs and targets, row by row."""
        labels = batch.labels
        kept = self._terms.kept(labels).any(-1)
        return outputs[kept].float().tolist(), labels[kept].tolist()

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Metrics over everything observed. Correlations with a constant are 0."""
        from scipy.stats import pearsonr, spearmanr  # as long to import as scikit-learn

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

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:
        """Outputs and targets."""
        sides = {
            name: np.asarray([row for observation in observations for row in observation[index]]).T
            for index, name in enumerate(("output", "target"))
        }
        columns = {f"{name}_{k}": column for name, side in sides.items() for k, column in enumerate(side.tolist())}
        pairs = [f"{name}_{k}" for k in range(len(sides["output"])) for name in sides]
        return Outcomes(columns, {"pearson": ["pearson", *pairs]})
