"""A student that reads texts by a tokenizer of its own: what no recipe can do with one, and what others come to."""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.schema import Recipe
from ted_ds.data.tokenizers import describe_difference
from ted_ds.errors import CheckpointError
from ted_ds.models.tokenizer_traits import TokenizerTraits
from ted_ds.planning.ridge_filters import are_solved


def are_two(teacher: TokenizerTraits | None, student: TokenizerTraits | None) -> bool:
    """Whether an id is another token to the student than to the teacher, as far as both are known."""
    return teacher is not None and student is not None and teacher.vocabulary != student.vocabulary


def refuse_two_tokenizers(recipe: Recipe, teacher: TokenizerTraits, student: TokenizerTraits) -> None:
    """Make sure that a student that reads by a tokenizer of its own can do what the recipe wants.

    Raises:
        CheckpointError: It cannot.
    """
    why = why_one(recipe)
    if why is not None and are_two(teacher, student):
        reason, remedy = why
        raise CheckpointError(
            f"teacher and student have different tokenizers "
            f"({describe_difference(teacher.vocabulary, student.vocabulary)}), and {reason}; use a student with the "
            f"teacher's tokenizer, or {remedy}"
        )


def why_one(recipe: Recipe) -> tuple[str, str] | None:
    """Why both models must read by one tokenizer, and what to do otherwise; None where each may have its own."""
    task, distill = recipe.task, recipe.distill
    if distill.needs.teacher and not task.pooled:
        return (
            f"distill.method: {distill.method} compares the two of a {task.kind} token by token",
            "distill.method: sft, which asks the teacher nothing (a task with one prediction for a text takes two "
            "tokenizers by any method)",
        )
    if recipe.teacher.finetune is not None and not task.pooled:
        return (
            f"the texts of a {task.kind} are read by the student's alone",
            "train the teacher in a run of its own and remove teacher.finetune",
        )
    if are_solved(recipe):
        return (
            "filters.initialisation: ridge solves the student's filters on the tokens of both",
            "filters.initialisation: normal",
        )
    if distill.needs.states and distill.feature_distance == "cka":
        return (
            "distill.feature_distance: cka compares how the tokens of a text lie to each other",
            "distill.feature_distance: mse or cosine",
        )
    if distill.needs.relations:
        return ("distill.relation_weight compares how the tokens of a text relate to each other", "no relation_weight")
    if distill.needs.teacher and recipe.pipeline.stages > 1:
        return (
            "the stages of a pipeline hand on the tokens of one",
            "pipeline.stages: 1, with memory shared out by ZeRO",
        )
    return None


def in_words(recipe: Recipe, teacher: TokenizerTraits, student: TokenizerTraits) -> Iterator[str]:
    """What two tokenizers come to in a recipe that they are right for, and how they are known as two."""
    task, difference = recipe.task, describe_difference(teacher.vocabulary, student.vocabulary)
    if not task.pooled:
        yield (
            f"two tokenizers ({difference}): the data are read by the student's, which is exported; the teacher is not "
            "scored"
        )
        return
    yield (
        f"two tokenizers ({difference}): each model reads by its own, up to task.{task.length_key} of its tokens; the "
        "student's is exported"
    )
    if recipe.distill.needs.states:
        yield "two tokenizers: layers are compared by one state of each text, where Stage I reads it, not at each token"
