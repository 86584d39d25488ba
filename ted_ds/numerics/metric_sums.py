"""Metrics as functions of sums over examples: what any resampled test set scores is then one product of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LARGEST_EXPONENT = 700.0
"""Of e, before fp64 ends; scorers stop there, too."""

Array = np.ndarray


class Form(NamedTuple):
    """How a metric follows from what is kept of each example."""

    expand: Callable[[Sequence[Array]], Array]
    """From columns with a number for each example to ``[examples, sums]``: what is summed up over examples."""
    value: Callable[[Array], Array]
    """From ``[..., sums]`` to the metric ``[...]``."""


def _side_by_side(columns: Sequence[Array]) -> Array:
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=-1)


def _ratio(sums: Array) -> Array:
    """The first over the second; 0 where there is nothing to count."""
    total, count = sums[..., 0], sums[..., 1]
    return np.divide(total, count, out=np.zeros_like(total), where=count != 0)


def _exp_ratio(sums: Array) -> Array:
    return np.exp(np.minimum(_ratio(sums), LARGEST_EXPONENT))


def _f1(sums: Array) -> Array:
    """Of what is right, found and there (the harmonic mean of precision and recall); 0 where nothing is."""
    right, found, there = (sums[..., index] for index in range(3))
    return _ratio(np.stack([2 * right, found + there], axis=-1))


def _by_class(columns: Sequence[Array]) -> Array:
    """Of each class, whether an example is rightly of it, found to be, and is: ``[examples, 3 * classes]``."""
    predicted, given = (np.asarray(column).astype(int) for column in columns)
    classes = np.arange(max(predicted.max(initial=0), given.max(initial=0)) + 1)
    found, there = predicted[:, None] == classes, given[:, None] == classes
    return np.concatenate([found & there, found, there], axis=-1).astype(np.float64)


def _f1_macro(sums: Array) -> Array:
    """The mean F1 of the classes that are found or there, as scikit-learn has it."""
    right, found, there = np.split(sums, 3, axis=-1)
    is_seen = found + there > 0
    of_class = _f1(np.stack([right, found, there], axis=-1))
    return _ratio(np.stack([of_class.sum(axis=-1), is_seen.sum(axis=-1)], axis=-1))


def _matthews(sums: Array) -> Array:
    """The correlation of predicted and given classes (Gorodkin 2004); 0 where one of them is constant."""
    right, found, there = np.split(sums, 3, axis=-1)
    count = there.sum(axis=-1)
    together = right.sum(axis=-1) * count - (found * there).sum(axis=-1)
    spread = [count**2 - (side**2).sum(axis=-1) for side in (found, there)]
    return _ratio(np.stack([together, np.sqrt(spread[0] * spread[1])], axis=-1))


def _moments(columns: Sequence[Array]) -> Array:
    """Of each target, count, sums, squares and products; columns are its outputs and then its targets, NaN for none.

    Both are taken from their means first: the sums are then as exact as the deviations are.
    """
    found = []
    for output, target in zip(columns[::2], columns[1::2], strict=True):
        is_there = ~np.isnan(np.asarray(target, dtype=np.float64))
        sides = []
        for side in (output, target):
            values = np.where(is_there, np.asarray(side, dtype=np.float64), 0)
            sides.append(np.where(is_there, values - values.sum() / max(is_there.sum(), 1), 0))
        x, y = sides
        found += [is_there.astype(np.float64), x, y, x * x, y * y, x * y]
    return np.stack(found, axis=-1)


def _pearson(sums: Array) -> Array:
    """The mean over targets of Pearson's correlation; that with a constant is 0."""
    of_targets = []
    for n, x, y, xx, yy, xy in (np.moveaxis(part, -1, 0) for part in np.split(sums, sums.shape[-1] // 6, axis=-1)):
        spread = np.maximum(n * xx - x**2, 0) * np.maximum(n * yy - y**2, 0)
        of_targets.append(_ratio(np.stack([n * xy - x * y, np.sqrt(spread)], axis=-1)))
    return np.mean(of_targets, axis=0)


FORMS: dict[str, Form] = {
    "ratio": Form(_side_by_side, _ratio),
    "exp_ratio": Form(_side_by_side, _exp_ratio),
    "f1": Form(_side_by_side, _f1),
    "f1_macro": Form(_by_class, _f1_macro),
    "matthews_correlation": Form(_by_class, _matthews),
    "pearson": Form(_moments, _pearson),
}
"""By name: ``ratio`` and ``exp_ratio`` of two columns, ``f1`` of what is right, found and there, ``f1_macro`` and
``matthews_correlation`` of predicted and given classes, ``pearson`` of outputs and targets in turns."""
