"""The arms of a study: what each changes in the recipe, and what it comes to. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.extends import OwnOverride
from ted_ds.config.methods import METHODS
from ted_ds.config.schema import Recipe
from ted_ds.config.study import METHOD_KEY, Study
from ted_ds.errors import ConfigError
from ted_ds.planning.operations import known_training, operations_of_phases, steps_within
from ted_ds.planning.phase import DISTILL, FINETUNE_TEACHER
from ted_ds.planning.plan import Plan, RowsOf, plan_recipe

BASELINE = "sft"
STEPS_KEY, EPOCHS_KEY = "distill.max_steps", "distill.epochs"

Changes = Mapping[str, Any]
"""Values by the keys that they change."""


@dataclass(frozen=True)
class Arm:
    """A way to train."""

    name: str
    changes: Changes
    recipe: Recipe
    plan: Plan
    steps: int | None
    """Of Stage II; None while they are not known."""
    operations: Mapping[str, float | None]
    """Of each phase by its name, by the plan; None for what is not known."""

    @property
    def total_operations(self) -> float | None:
        """Of all phases, but for the teacher's training, which is there before the arms differ."""
        known = [value for name, value in self.operations.items() if name != FINETUNE_TEACHER.name]
        return None if None in known else sum(value for value in known if value is not None)


def as_overrides(changes: Changes, *, spaced: bool = True) -> list[str]:
    """Changes as the command line has them; not ``spaced``: with no space but those within values."""
    separators = None if spaced else (",", ":")
    return [f"{key}={json.dumps(value, ensure_ascii=False, separators=separators)}" for key, value in changes.items()]


def names_of_arms(recipe: Recipe, study: Study) -> list[str]:
    """The arms that a study has, in order, whether they are compared or not."""
    if study.arms is not None:
        return [*study.arms]
    return [method for method in METHODS if method != "ted" or recipe.filters is not None]


def changes_of_arm(recipe: Recipe, study: Study, name: str) -> dict[str, Any]:
    """What an arm changes; the predefined ``sft`` goes without what only a teacher is for."""
    changes = study.changes_of(name)
    if name == BASELINE and changes[METHOD_KEY] == BASELINE:
        idle = {"data.transfer": recipe.data.transfer, "teacher.cache": recipe.teacher.cache}
        changes = {**{key: None for key, value in idle.items() if value is not None}, **changes}
    return changes


class Planner:
    """Plans arms of one recipe."""

    def __init__(self, path: str, overrides: Sequence[str], rows_of: RowsOf, num_ranks: int) -> None:
        self._path, self._overrides, self._rows_of, self._num_ranks = path, overrides, rows_of, num_ranks

    def arm(self, name: str, changes: Changes) -> Arm:
        """An arm with these changes.

        Raises:
            ConfigError: Lists its mistakes.
        """
        whole = [*self._overrides, *map(OwnOverride, as_overrides(changes))]
        recipe, plan = plan_recipe(self._path, whole, self._rows_of, num_ranks=self._num_ranks, looks_up_hub=True)
        steps = known_training(recipe, plan, recipe.distill).max_steps
        return Arm(name, changes, recipe, plan, steps, operations_of_phases(recipe, plan))

    def at_equal_compute(self, arms: Mapping[str, Arm]) -> dict[str, Arm]:
        """The arms with as many steps of Stage II as the operations of the dearest allow.

        Raises:
            ConfigError: Operations of an arm are not known.
        """
        totals = {name: arm.total_operations for name, arm in arms.items()}
        unknown = [name for name, total in totals.items() if total is None]
        if unknown:
            raise ConfigError(
                f"{self._path}: study.equal: compute: the operations of {', '.join(unknown)} are not known before "
                "models and rows are; fetch the models first, give max_steps in the place of epochs, or use tokens"
            )
        most = max(total for total in totals.values() if total is not None)
        found = {}
        for name, arm in arms.items():
            total, of_stage_two = totals[name], arm.operations[DISTILL.name]
            assert total is not None
            assert of_stage_two is not None
            steps = steps_within(arm.recipe, arm.plan, most - total + of_stage_two)
            changes = {**arm.changes, EPOCHS_KEY: None, STEPS_KEY: steps}
            found[name] = self.arm(name, changes) if steps != arm.steps else arm
        return found
