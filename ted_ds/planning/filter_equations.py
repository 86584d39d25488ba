"""How many equations filters are solved from: as many as tokens where a head reads each, else as many as texts."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.planning.phase import Phase
from ted_ds.planning.plan import Plan
from ted_ds.planning.ridge_filters import reads_texts, solves_towards_teacher


def equations_of_filters(recipe: Recipe, plan: Plan, phase: Phase, side: str) -> tuple[int, int, str]:
    """How many equations a phase solves the filters of a side from, and judges them by, and what each is one of.

    ``texts`` are estimated by the first ones of the training data.
    """
    calibration = recipe.student.calibration
    beside_teacher = side == "student" and solves_towards_teacher(recipe, phase)
    if beside_teacher or not reads_texts(recipe):
        return calibration.tokens, calibration.heldout_tokens, "tokens"
    fitted, heldout = (
        _about_num_texts(recipe, plan, number) for number in (calibration.tokens, calibration.heldout_tokens)
    )
    return fitted, heldout, "texts"


def _about_num_texts(recipe: Recipe, plan: Plan, num_tokens: int) -> int:
    """About how many texts of the training data have so many tokens: by the first ones, or else by the longest."""
    task, found = recipe.task, [rows for place, rows in plan.data.items() if place.startswith("data.train")]
    lengths = [rows.tokens_of_a_text for rows in found if rows.tokens_of_a_text is not None]
    most = task.rows_per_example * task.sequence_length
    return num_tokens // min(most, lengths[0] if lengths else most)
