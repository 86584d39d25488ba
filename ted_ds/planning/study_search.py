"""The settings that a study tries for each arm before it compares them, and with how many steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.schema import Recipe
from ted_ds.config.study import Search
from ted_ds.planning.study_arms import EPOCHS_KEY, STEPS_KEY, Arm, Changes

WARMUP_KEY = "distill.warmup_steps"


@dataclass(frozen=True)
class Trial:
    """A setting of an arm."""

    number: int
    """From 0, in the order of the grid."""
    setting: Changes
    arm: Arm
    """With the setting."""


def settings_of(search: Search, arm: str, seed: int) -> list[Changes]:
    """Those of an arm that are tried: its whole grid, or as many as there are trials, drawn by a seed."""
    grid = search.grids[arm]
    whole = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    drawn = sorted(random.Random(f"{seed} {arm}").sample(range(len(whole)), search.trials))
    return [whole[index] for index in drawn]


def search_mistakes(recipe: Recipe, search: Search, names: Sequence[str]) -> Iterator[str]:
    """What in a search does not fit the study."""
    if recipe.data.test is None:
        yield (
            "study.search: chooses on the held-out data, which then say too much of what is chosen; give data.test, "
            "which is looked at once"
        )
    for arm in search.grids:
        if arm not in names:
            yield f"study.search.grids.{arm}: no such arm; use {', '.join(names)}"
    without = [name for name in names if name not in search.grids]
    if without:
        yield (
            f"study.search.grids: {', '.join(without)}: all arms are given as many trials, so that none is better "
            "for having been tried more; give each a grid"
        )


def numbers_of_rounds(search: Search) -> list[int]:
    """How many trials of an arm are in each round."""
    return [max(search.trials >> index, 1) for index in range(search.halvings + 1)]


def shortened(recipe: Recipe, steps: int | None, times: int) -> Mapping[str, Any]:
    """What gives Stage II the steps of a recipe halved so often, or the epochs; warm-up likewise."""
    if not times:
        return {}
    warmup = recipe.distill.warmup_steps >> times
    if recipe.distill.epochs is not None:
        return {EPOCHS_KEY: recipe.distill.epochs / 2**times, WARMUP_KEY: warmup}
    assert steps is not None, "a plan without epochs has steps"
    fewer = max(steps >> times, 1)
    return {STEPS_KEY: fewer, WARMUP_KEY: min(warmup, fewer - 1)}
