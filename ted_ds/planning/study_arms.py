"""The arms of a study: what each changes, what it comes to, and every mistake in any of them. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.load import load_draft
from ted_ds.config.schema import Recipe
from ted_ds.config.study import METHOD_KEY, METHODS, Study
from ted_ds.errors import ConfigError, raise_all
from ted_ds.planning.operations import known_training, operations_of_phases, operations_per_step
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


@dataclass(frozen=True)
class StudyPlan:
    """A study as it will be."""

    recipe: Recipe
    """As it is without an arm."""
    study: Study
    arms: Mapping[str, Arm]
    seeds: Sequence[int]

    @property
    def baseline(self) -> str:
        """The arm that all are compared with."""
        return BASELINE if BASELINE in self.arms else next(iter(self.arms))


def as_overrides(changes: Changes) -> list[str]:
    """Changes as the command line has them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def names_of_arms(recipe: Recipe, study: Study) -> list[str]:
    """The arms that a study has, in order."""
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


def plan_study(path: str, overrides: Sequence[str], rows_of: RowsOf) -> StudyPlan:
    """Read a recipe and plan its study.

    Args:
        path: The recipe's file.
        overrides: Changes to it.
        rows_of: Tells how a task's rows are read (:func:`ted_ds.tasks.kind.kind_of`).

    Raises:
        ConfigError: Lists every mistake of the recipe, or else of all its arms.
    """
    recipe, _ = plan_recipe(path, overrides, rows_of, num_ranks=_ranks(path, overrides), looks_up_hub=True)
    study = recipe.study or Study()
    planner = _Planner(path, overrides, rows_of, study.ranks)
    mistakes: dict[str, list[str]] = {}
    arms: dict[str, Arm] = {}
    for name in names_of_arms(recipe, study):
        try:
            arms[name] = planner.arm(name, changes_of_arm(recipe, study, name))
        except ConfigError as error:
            for line in str(error).splitlines():
                mistakes.setdefault(line, []).append(name)
    found = [f"arm{'s'[: len(of) > 1]} {', '.join(of)} of the study: {line}" for line, of in mistakes.items()]
    raise_all([*found, *(f"{path}: {line}" for line in _headline_mistakes(recipe))])
    seeds = study.seeds if isinstance(study.seeds, list) else range(recipe.seed, recipe.seed + study.seeds)
    return StudyPlan(recipe, study, planner.at_equal_compute(arms) if study.equal == "compute" else arms, [*seeds])


def _ranks(path: str, overrides: Sequence[str]) -> int:
    """Of each run, as far as the recipe can be read."""
    draft = load_draft(path, overrides).recipe
    return 1 if draft is None or draft.study is None else draft.study.ranks


def _headline_mistakes(recipe: Recipe) -> Iterator[str]:
    headline, task = recipe.task.headline, recipe.task
    if headline in task.not_by_sums:
        others = [name for name in task.possible_headlines if name not in task.not_by_sums]
        yield (
            f"task.headline: {headline}: does not follow from sums over examples, by which a study has its intervals; "
            f"use {' or '.join(others)}"
        )


class _Planner:
    """Plans arms of one recipe."""

    def __init__(self, path: str, overrides: Sequence[str], rows_of: RowsOf, num_ranks: int) -> None:
        self._path, self._overrides, self._rows_of, self._num_ranks = path, overrides, rows_of, num_ranks

    def arm(self, name: str, changes: Changes) -> Arm:
        """An arm with these changes.

        Raises:
            ConfigError: Lists its mistakes.
        """
        whole = [*self._overrides, *as_overrides(changes)]
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
            of_step, total = operations_per_step(arm.recipe, arm.plan, DISTILL), totals[name]
            assert of_step is not None
            assert total is not None
            assert arm.steps is not None
            more = int((most - total) / of_step)
            changes = {**arm.changes, EPOCHS_KEY: None, STEPS_KEY: arm.steps + more}
            found[name] = self.arm(name, changes) if more else arm
        return found


def describe_study(plan: StudyPlan) -> str:
    """A study in words, for ``ted-ds check``: a line, and one for each arm."""
    study, num_runs = plan.study, len(plan.arms) * len(plan.seeds)
    lines = [
        f"study     {len(plan.arms)} arms x {len(plan.seeds)} seeds = {num_runs} runs at equal {study.equal}, compared "
        f"with {plan.baseline}; {study.at_once} at once of {study.ranks} rank{'s'[: study.ranks > 1]}\n"
    ]
    for name, arm in plan.arms.items():
        steps = "steps that are known once the data are read" if arm.steps is None else f"{arm.steps:,} steps"
        total = arm.total_operations
        operations = "operations not known yet" if total is None else f"{total / 1e12:.4g} x 10^12 operations"
        changes = ", ".join(as_overrides(arm.changes)) or "the recipe as it is"
        lines.append(f"arm       {name:16} {steps} of Stage II, {operations}; {changes}\n")
    return "".join(lines)
