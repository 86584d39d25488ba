"""How many operations the phases of a run take, by arithmetic; what is not known yet is None."""

from __future__ import annotations

import bisect

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.planning.filter_equations import equations_of_filters
from ted_ds.planning.heal_cost import heal_cost
from ted_ds.planning.phase import DISTILL, HEAL_STUDENT, Phase, phases_of, training_of
from ted_ds.planning.phase_memory import facts_of
from ted_ds.planning.pipeline_cut import forward_operations, operations_per_token
from ted_ds.planning.plan import Plan
from ted_ds.planning.ridge_filters import are_solved, solves_towards_teacher
from ted_ds.planning.steps import plan_with_rows


def known_training(recipe: Recipe, plan: Plan, training: PhasePlan) -> PhasePlan:
    """How a phase trains, with the steps that its epochs come to where the rows are counted."""
    return training if plan.num_rows is None else plan_with_rows(recipe, training, plan.num_rows.number)


def operations_per_step(recipe: Recipe, plan: Plan, phase: Phase) -> float | None:
    """Of a phase that trains, over all ranks (multiply-adds counted twice); texts are taken for as long as they may be.

    None while a model is not known.
    """
    if plan.teacher is None or plan.student is None:
        return None
    facts = {side: facts_of(plan, side) for side in ("student", "teacher")}
    operations = operations_per_token(recipe, facts, plan.layer_pairs, plan.filter_dim, phase)
    task = recipe.task
    return operations * training_of(recipe, phase).global_batch_size * task.rows_per_example * task.sequence_length


def operations_of_training(recipe: Recipe, plan: Plan, phase: Phase) -> float | None:
    """Of all steps of a phase that trains; None while models or steps are not known."""
    of_step = operations_per_step(recipe, plan, phase)
    steps = known_training(recipe, plan, training_of(recipe, phase)).max_steps
    if of_step is None or steps is None:
        return None
    return of_step * (steps + (_num_measurements(recipe, steps) if phase is DISTILL else 0))


def steps_within(recipe: Recipe, plan: Plan, operations: float) -> int:
    """How many steps of Stage II, measurements of gradients with them, take no more than these operations."""
    of_step = operations_per_step(recipe, plan, DISTILL)
    assert of_step is not None, "a model is not known"
    affordable = int(operations / of_step)
    return bisect.bisect_right(range(affordable + 1), affordable, key=lambda n: n + _num_measurements(recipe, n)) - 1


def _num_measurements(recipe: Recipe, steps: int) -> int:
    """How often a term's gradient is measured for its weight, each time by no more than a step's operations."""
    plan = recipe.distill
    if plan.balance is None or not plan.needs.teacher:
        return 0
    return len(plan.weighed) * -(-steps // plan.balance_every_steps)


def operations_of_solving(recipe: Recipe, plan: Plan, phase: Phase, side: str) -> float:
    """Of the sums, in fp64, from which a phase solves the filters of a side."""
    fitted, heldout, _ = equations_of_filters(recipe, plan, phase, side)
    width = facts_of(plan, side).hidden_size
    return 2.0 * (fitted + heldout) * (width + 1) * (width + 1 + plan.filter_dim) * len(plan.layer_pairs)


def operations_of(recipe: Recipe, plan: Plan, phase: Phase) -> float | None:
    """Of a whole phase, with what is done without a gradient.

    How blocks are chosen for a cut, the teacher's cache and scores are not counted. None while something is not known.
    """
    if plan.teacher is None or plan.student is None:
        return None
    if phase is HEAL_STUDENT:
        cost = heal_cost(recipe, plan.teacher, plan.student, num_ranks=1)
        return cost.in_passes + cost.in_solving
    if phase.plan_path is None:
        return 0.0
    found = operations_of_training(recipe, plan, phase)
    if found is None or not (phase.learns_filters and are_solved(recipe)):
        return found
    calibration = recipe.student.calibration
    num_tokens = calibration.tokens + calibration.heldout_tokens
    for side in phase.frozen:
        both = side == "student" and solves_towards_teacher(recipe, phase)
        for model in ("teacher", "student") if both else (side,):
            found += num_tokens * forward_operations(recipe, facts_of(plan, model))
        found += operations_of_solving(recipe, plan, phase, side)
    return found


def operations_of_phases(recipe: Recipe, plan: Plan) -> dict[str, float | None]:
    """Of each phase of a recipe, by its name."""
    return {phase.name: operations_of(recipe, plan, phase) for phase in phases_of(recipe)}
