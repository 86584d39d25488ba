"""A study as it will be, and every mistake in it: those of all arms and of all settings that are tried, at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ted_ds.config.load import load_draft
from ted_ds.config.schema import Recipe
from ted_ds.config.study import Study
from ted_ds.errors import ConfigError, counted, raise_all
from ted_ds.planning.plan import RowsOf, plan_recipe
from ted_ds.planning.study_arms import BASELINE, Arm, Changes, Planner, as_overrides, changes_of_arm, names_of_arms
from ted_ds.planning.study_search import Trial, numbers_of_rounds, search_mistakes, settings_of


@dataclass(frozen=True)
class StudyPlan:
    """A study as it will be."""

    recipe: Recipe
    """As it is without an arm."""
    study: Study
    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    trials: Mapping[str, Sequence[Trial]]
    """Of each arm, where settings are searched for; else none."""
    planner: Planner

    @property
    def baseline(self) -> str:
        """The arm that all are compared with."""
        return BASELINE if BASELINE in self.arms else next(iter(self.arms))


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
    planner = Planner(path, overrides, rows_of, study.ranks)
    mistakes = _Mistakes(planner)
    names = names_of_arms(recipe, study)
    compared = [name for name in names if study.only is None or name in study.only]
    planned = {name: mistakes.plan(name, changes_of_arm(recipe, study, name)) for name in compared}
    own = [*_headline_mistakes(recipe)]
    unknown = [name for name in study.only or () if name not in names]
    own += [f"study.only: {', '.join(unknown)}: no such arm; use some of {', '.join(names)}"] if unknown else []
    own += [] if study.search is None else search_mistakes(recipe, study.search, names)
    arms = {name: arm for name, arm in planned.items() if arm is not None}
    own += _reader_mistakes(arms)
    own += _precision_mistakes(recipe, arms)
    raise_all([*mistakes.in_words("arm"), *(f"{path}: {line}" for line in own)])
    seeds = study.seeds if isinstance(study.seeds, list) else [*range(recipe.seed, recipe.seed + study.seeds)]
    if study.equal == "compute":
        arms = planner.at_equal_compute(arms)
    trials: dict[str, list[Trial]] = {}
    for name, arm in arms.items() if study.search is not None else ():
        assert study.search is not None
        for number, setting in enumerate(settings_of(study.search, name, seeds[0])):
            tried = mistakes.plan(name, {**arm.changes, **setting}, setting)
            if tried is not None:
                trials.setdefault(name, []).append(Trial(number, setting, tried))
    raise_all(mistakes.in_words("setting"))
    return StudyPlan(recipe, study, arms, seeds, trials, planner)


def _reader_mistakes(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Whether students read by tokenizers that differ: what they are scored on is then not known to be the same."""
    by_reader: dict[str | None, list[str]] = {}
    for name, arm in arms.items():
        by_reader.setdefault(arm.recipe.student.path if arm.plan.two_tokenizers else None, []).append(name)
    if len(by_reader) > 1:
        groups = " and ".join(f"{reader or 'the teacher'} ({', '.join(names)})" for reader, names in by_reader.items())
        yield (
            f"study.arms: students read by different tokenizers, those of {groups}; examples are compared by their "
            "tokens, so use students of one tokenizer in a study"
        )


def _precision_mistakes(recipe: Recipe, arms: Mapping[str, Arm]) -> Iterator[str]:
    """Whether each run would find out by its own clock in how many bits its teacher is."""
    if recipe.teacher.precision is not None or any(arm.recipe.teacher.precision is not None for arm in arms.values()):
        yield (
            "teacher.precision: auto: each run of a study would measure for itself, and arms could learn from "
            "different teachers; remove it, or give all of them one in 8 bits (teacher.host: int8)"
        )


def with_settings(plan: StudyPlan, chosen: Mapping[str, Changes]) -> StudyPlan:
    """The study with settings that were chosen for its arms; at equal compute, steps are reckoned anew."""
    arms = {name: plan.planner.arm(name, {**arm.changes, **chosen[name]}) for name, arm in plan.arms.items()}
    return replace(plan, arms=plan.planner.at_equal_compute(arms) if plan.study.equal == "compute" else arms)


class _Mistakes:
    """Collects those of arms, each said once."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._found: dict[str, list[str]] = {}

    def plan(self, name: str, changes: Changes, setting: Changes | None = None) -> Arm | None:
        """An arm, perhaps with a setting that is among its changes; None where it is wrong."""
        try:
            return self._planner.arm(name, changes)
        except ConfigError as error:
            shown = name if setting is None else f"{name} ({', '.join(as_overrides(setting))})"
            for line in str(error).splitlines():
                self._found.setdefault(line, []).append(shown)
            return None

    def in_words(self, what: str) -> list[str]:
        """All of them."""
        return [f"{what}{'s'[: len(of) > 1]} {', '.join(of)} of the study: {line}" for line, of in self._found.items()]


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


def describe_study(plan: StudyPlan) -> str:
    """A study in words, for ``ted-ds check``: a line, and one for each arm."""
    study, num_runs = plan.study, len(plan.arms) * len(plan.seeds)
    lines = [
        f"study     {counted(len(plan.arms), 'arm')} x {counted(len(plan.seeds), 'seed')} = "
        f"{counted(num_runs, 'run')} at equal {study.equal}, compared "
        f"with {plan.baseline}; {study.at_once} at once of {counted(study.ranks, 'rank')}\n"
    ]
    if study.search is not None:
        rounds = " > ".join(str(number) for number in numbers_of_rounds(study.search))
        lines.append(f"search    {rounds} trials of each arm with seed {plan.seeds[0]}, chosen on held-out data\n")
    for name, arm in plan.arms.items():
        steps = "steps that are known once the data are read" if arm.steps is None else counted(arm.steps, "step")
        total = arm.total_operations
        operations = "operations not known yet" if total is None else f"{total / 1e12:.4g} x 10^12 operations"
        changes = ", ".join(as_overrides(arm.changes)) or "the recipe as it is"
        lines.append(f"arm       {name:16} {steps} of Stage II, {operations}; {changes}\n")
    return "".join(lines)
