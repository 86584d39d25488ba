"""Weights that are a number, or change from step to step: ``[[step, weight], ...]``, linearly between these points."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from ted_ds.config.finite_number import is_finite_number

WeightPoint = tuple[int, float]
Weight = float | tuple[WeightPoint, ...]


def weight_at(weight: float | str | Sequence[WeightPoint], step: int) -> float:
    """A weight at a step, counted from 0: it changes linearly between two points, and not before or after them.

    That of a source by its ``size`` is known only once its files are; here it is 1.
    """
    if isinstance(weight, str):
        return 1.0
    if isinstance(weight, int | float):
        return float(weight)
    index = bisect.bisect_right([at for at, _ in weight], step)
    if index in (0, len(weight)):
        return float(weight[max(index - 1, 0)][1])
    (start, before), (end, after) = weight[index - 1], weight[index]
    return before + (after - before) * (step - start) / (end - start)


def highest(weight: Weight) -> float:
    """What a weight comes to at most."""
    return float(weight) if isinstance(weight, int | float) else max(value for _, value in weight)


def points_of(weight: Any) -> tuple[WeightPoint, ...] | None:
    """What stands as a list in a recipe as points with ascending steps; None where it is no such list, or all are 0."""
    if not isinstance(weight, list | tuple):
        return None
    points: list[Any] = [tuple(point) if isinstance(point, list | tuple) else () for point in weight]
    steps = [point[0] for point in points if len(point) == 2 and all(map(is_finite_number, point)) and min(point) >= 0]
    if steps and len(steps) == len(points) and steps == sorted(set(steps)) and any(value for _, value in points):
        return tuple(points)
    return None
