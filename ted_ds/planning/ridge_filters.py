"""Filters that are solved (``filters.initialisation: ridge``): which model's head reads them, and what that takes."""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.planning.phase import Phase


def reader_of(recipe: Recipe, side: str) -> str:
    """The side whose head reads a side's filters in Stage I."""
    filters = recipe.filters
    return "teacher" if filters is not None and filters.read_by_teacher else side


def are_solved(recipe: Recipe) -> bool:
    """Whether the run has filters that are solved."""
    return recipe.distill.needs.filters and recipe.filters is not None and recipe.filters.are_solved


def solves_towards_teacher(recipe: Recipe, phase: Phase) -> bool:
    """Whether a phase solves the student's filters towards what the teacher's put out."""
    is_there = recipe.filters is not None and recipe.filters.read_by_teacher
    return is_there and phase.learns_filters and "student" in phase.frozen


def reads_texts(recipe: Recipe) -> bool:
    """Whether a model's head reads a text at one place, or else each of its tokens."""
    return recipe.task.pooled and not recipe.task.has_lm_head


def ridge_mistakes(
    recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None, filter_dim: int
) -> Iterator[str]:
    """Why filters cannot be solved as the recipe asks: lines of the recipe."""
    filters = recipe.filters
    if not are_solved(recipe) or filters is None or recipe.task.why_no_ridge is not None:
        return
    for side, facts in (("teacher", teacher), ("student", student)):
        if facts is None or reader_of(recipe, side) != side:
            continue
        if facts.hidden_size != filter_dim:
            other = ", or ridge.student: teacher" if side == "student" else ""
            yield (
                f"filters.{'dim' if filters.dim is not None else 'initialisation'}: filters of {filter_dim} dimensions "
                f"cannot be solved towards the {side}'s last state, which has {facts.hidden_size}; "
                f"{'remove filters.dim' if side == 'teacher' else f'use filters.dim: {facts.hidden_size}'}{other}"
            )
        if recipe.task.has_lm_head:
            continue
        reason = facts.family.unstaged or facts.family.refused.get("pipeline")
        if reason is not None:
            yield (
                f"filters.initialisation: ridge: the {side} is a {facts.model_type}, whose head cannot be run without "
                f"its blocks here ({reason}); use normal or identity"
            )
        if facts.quantisation is not None:
            yield (
                f"filters.initialisation: ridge: the {side}'s weights are quantised ({facts.quantisation}), and its "
                "head is not run without its blocks; use normal or identity"
            )
        has_own = not facts.has_classifier and (recipe.student.path is not None or recipe.student.from_config)
        if side == "student" and recipe.student.finetune is None and has_own:
            yield (
                f"filters.ridge.student: itself: the student's weights hold no head for {recipe.task.kind}, by which "
                "its filters would be read; add student.finetune, or use teacher"
            )
