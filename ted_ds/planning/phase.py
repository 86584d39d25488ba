"""The phases of a run, in order: one record says of each what the command line and the arithmetic of plans ask.

What a phase depends on and does is attached to its record in :mod:`ted_ds.phases`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads this list, and needs no schema to show its help
    from ted_ds.config.phase_plan import PhasePlan
    from ted_ds.config.schema import Recipe


@dataclass(frozen=True)
class Phase:
    """One phase."""

    name: str
    """Also of its folder, and before its numbers."""
    verb: str
    """That does it; ``run`` does all."""
    plan_path: str | None = None
    """Where the recipe says how it trains; None where nothing does."""
    trains: str | None = None
    """The side whose model trains; None where no body does."""
    frozen: tuple[str, ...] = ()
    """The sides whose models are frozen beside what trains, the one that sets the pace first."""
    condition: Callable[[Recipe], bool] = lambda _: True
    """When a recipe has it, where nothing trains; else it does where there is a plan for it."""

    def is_in(self, recipe: Recipe) -> bool:
        """Whether a recipe has it."""
        return self.condition(recipe) if self.plan_path is None else self.plan_path in recipe.phase_plans()

    @property
    def is_of_a_stage(self) -> bool:
        """Whether it makes a model or filters, in Stage 0, I or II: what runs with the same inputs may share."""
        return self.verb in ("finetune", "filters", "distill")

    @property
    def learns_filters(self) -> bool:
        """Whether it is one of Stage I: nothing but the filters of its frozen sides trains, and heads on them."""
        return self.plan_path is not None and self.trains is None

    @property
    def sides(self) -> tuple[str, ...]:
        """All models in it, the one that sets the pace first."""
        return self.frozen if self.trains is None else (self.trains, *self.frozen)


FINETUNE_TEACHER = Phase("finetune_teacher", "finetune", plan_path="teacher.finetune", trains="teacher")
CUT_STUDENT = Phase("cut_student", "finetune", condition=lambda recipe: recipe.student.from_teacher is not None)
RANDOM_STUDENT = Phase("random_student", "finetune", condition=lambda recipe: recipe.student.from_config is not None)
HEAL_STUDENT = Phase("heal_student", "finetune", condition=lambda recipe: recipe.student.heal is not None)
FINETUNE_STUDENT = Phase("finetune_student", "finetune", plan_path="student.finetune", trains="student")
FILTERS_TEACHER = Phase("filters_teacher", "filters", plan_path="filters.teacher", frozen=("teacher",))
FILTERS_STUDENT = Phase("filters_student", "filters", plan_path="filters.student", frozen=("student",))
FILTERS_BOTH = Phase("filters_both", "filters", plan_path="filters.both", frozen=("student", "teacher"))
DISTILL = Phase("distill", "distill", plan_path="distill", trains="student", frozen=("teacher",))
EVALUATE = Phase("evaluate", "evaluate")
EXPORT = Phase("export", "export")
LM_EVAL = Phase("lm_eval", "lm_eval", condition=lambda recipe: bool(recipe.evaluation.lm_eval))
PHASES = (
    FINETUNE_TEACHER,
    CUT_STUDENT,
    RANDOM_STUDENT,
    HEAL_STUDENT,
    FINETUNE_STUDENT,
    FILTERS_TEACHER,
    FILTERS_STUDENT,
    FILTERS_BOTH,
    DISTILL,
    EVALUATE,
    EXPORT,
    LM_EVAL,
)
_BY_NAME = {phase.name: phase for phase in PHASES}


def phase_named(name: str) -> Phase:
    """The phase of a name."""
    return _BY_NAME[name]


def training_of(recipe: Recipe, phase: Phase) -> PhasePlan:
    """How a phase that trains does so."""
    assert phase.plan_path is not None
    return recipe.phase_plans()[phase.plan_path]


def phases_of(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases that a recipe has, in order."""
    return tuple(phase for phase in PHASES if phase.is_in(recipe))


def phases_of_verb(verb: str) -> tuple[Phase, ...]:
    """The phases that a verb does, in order; none of one that does other things."""
    return tuple(phase for phase in PHASES if verb in ("run", phase.verb))
