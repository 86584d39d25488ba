"""What it takes to solve filters, in words, for ``ted-ds check``."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.planning.filter_equations import equations_of_filters
from ted_ds.planning.operations import operations_of_solving
from ted_ds.planning.phase import phases_of
from ted_ds.planning.phase_memory import facts_of
from ted_ds.planning.plan import Plan
from ted_ds.planning.ridge_filters import are_solved, solves_towards_teacher


def describe_ridge(recipe: Recipe, plan: Plan) -> str:
    """A line for each side's filters; empty where none are solved, or while a model is not known yet."""
    if not are_solved(recipe) or plan.teacher is None or plan.student is None:
        return ""
    calibration, lines = recipe.student.calibration, []
    for phase in (one for one in phases_of(recipe) if one.learns_filters):
        for side in sorted(phase.frozen, reverse=True):  # the teacher's first
            width, dim = facts_of(plan, side).hidden_size, plan.filter_dim
            towards = f"the {side}'s last state"
            passes = f"a pass of the {side}"
            if side == "student" and solves_towards_teacher(recipe, phase):
                towards, passes = "what the teacher's filters put out", "a pass of both models"
            tera = operations_of_solving(recipe, plan, phase, side) / 1e12
            fitted, heldout, unit = equations_of_filters(recipe, plan, phase, side)
            texts = "" if unit == "tokens" else f", an equation for each of about {fitted:,} and {heldout:,} texts"
            lines.append(
                f"ridge     {phase.name:16} {counted(len(plan.layer_pairs), 'filter')} of the {side}, {width} -> "
                f"{dim}, towards "
                f"{towards}: {passes} over {calibration.tokens:,} tokens and {calibration.heldout_tokens:,} to judge by"
                f"{texts}; their sums are {tera:.3g} x 10^12 operations in fp64\n"
            )
            if fitted < width + 1:
                about = "" if unit == "tokens" else f" are about {fitted:,} texts, each an equation,"
                lines.append(
                    f"WARN      student.calibration.tokens: {calibration.tokens:,} tokens{about} for the "
                    f"{width + 1:,} unknowns of each dimension of the {side}'s filters; give more\n"
                )
    return "".join(lines)
