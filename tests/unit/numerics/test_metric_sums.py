"""Metrics from sums over examples: what scikit-learn and SciPy compute, on any resampled set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn import metrics

from ted_ds.numerics.metric_sums import FORMS

GENERATOR = np.random.default_rng(7)
PREDICTED, GIVEN = GENERATOR.integers(0, 4, 60), GENERATOR.integers(0, 3, 60)
OUTPUTS, TARGETS = GENERATOR.standard_normal((2, 60)) + 100, GENERATOR.standard_normal((2, 60)) * 3
LOSSES, COUNTS = GENERATOR.random(60), GENERATOR.integers(1, 9, 60)
BITS, TRUTH = GENERATOR.integers(0, 2, (60, 5)), GENERATOR.integers(0, 2, (60, 5))


def resampled(form: str, columns: list[np.ndarray], rows: np.ndarray) -> float:
    """A metric on chosen rows, some more than once, by their numbers."""
    counts = np.bincount(rows, minlength=len(columns[0])).astype(float)
    return float(FORMS[form].value(counts @ FORMS[form].expand(columns)))


def mean_pearson(rows: np.ndarray) -> float:
    return float(np.mean([pearsonr(x[rows], y[rows])[0] for x, y in zip(OUTPUTS, TARGETS, strict=True)]))


REFERENCES: dict[str, tuple[str, list[np.ndarray], Callable[[np.ndarray], float]]] = {
    "accuracy": (
        "ratio",
        [(PREDICTED == GIVEN).astype(int), np.ones(60)],
        lambda rows: metrics.accuracy_score(GIVEN[rows], PREDICTED[rows]),
    ),
    "f1_macro": (
        "f1_macro",
        [PREDICTED, GIVEN],
        lambda rows: metrics.f1_score(GIVEN[rows], PREDICTED[rows], average="macro", zero_division=0),
    ),
    "matthews": (
        "matthews_correlation",
        [PREDICTED, GIVEN],
        lambda rows: metrics.matthews_corrcoef(GIVEN[rows], PREDICTED[rows]),
    ),
    "f1_micro": (
        "f1",
        [(BITS * TRUTH).sum(1), BITS.sum(1), TRUTH.sum(1)],
        lambda rows: metrics.f1_score(TRUTH[rows], BITS[rows], average="micro"),
    ),
    "pearson": ("pearson", [OUTPUTS[0], TARGETS[0], OUTPUTS[1], TARGETS[1]], mean_pearson),
    "perplexity": (
        "exp_ratio",
        [LOSSES, COUNTS],
        lambda rows: float(np.exp(LOSSES[rows].sum() / COUNTS[rows].sum())),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_metric_is_the_references_on_any_resampled_set(name: str, seed: int) -> None:
    form, columns, reference = REFERENCES[name]
    rows = np.random.default_rng(seed).integers(0, 60, 60)
    assert resampled(form, columns, rows) == pytest.approx(reference(rows), rel=1e-12)
    assert resampled(form, columns, np.arange(60)) == pytest.approx(reference(np.arange(60)), rel=1e-12)


def test_targets_that_are_missing_count_in_no_correlation() -> None:
    target = TARGETS[0].copy()
    target[::3] = np.nan
    there = ~np.isnan(target)
    found = resampled("pearson", [OUTPUTS[0], target], np.arange(60))
    assert found == pytest.approx(pearsonr(OUTPUTS[0][there], target[there])[0], rel=1e-12)


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("ratio", [np.zeros(3), np.zeros(3)]),
        ("f1", [np.zeros(3)] * 3),
        ("matthews_correlation", [np.zeros(3), np.array([0, 1, 1])]),
        ("pearson", [np.ones(3), np.array([0.0, 1, 2])]),
    ],
)
def test_what_has_no_value_is_0_as_scorers_have_it(form: str, columns: list[np.ndarray]) -> None:
    assert resampled(form, columns, np.arange(3)) == 0


def test_many_draws_are_one_product() -> None:
    form = FORMS["f1_macro"]
    stats = form.expand([PREDICTED, GIVEN])
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=5).astype(float)
    assert form.value(counts @ stats) == pytest.approx([float(form.value(one @ stats)) for one in counts], rel=1e-12)
