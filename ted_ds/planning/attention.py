"""Whether models can attend as a recipe wants them to."""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts


def attention_mistakes(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """What a model of the recipe cannot do, without the place."""
    has = facts.family.attention
    if recipe.attention == "packed":
        has = ("packed",) if "sdpa" in has and not facts.family.is_stacked else ()
    if recipe.attention not in ("auto", *has):
        yield f"a {facts.model_type} has no {recipe.attention} attention; use attention: auto"


def dropped_attention(recipe: Recipe, side: str, facts: ModelFacts) -> Iterator[str]:
    """Whether weights of attention would be dropped while a model of this ``side`` trains, where none can be."""
    plan = recipe.student if side == "student" else recipe.teacher
    trains = side == "student" or recipe.teacher.finetune is not None
    if recipe.attention != "packed" or not trains:
        return
    for key in facts.family.attention_dropouts:
        share = plan.dropout.given.get("attention", facts.dropped.get(key, 0.0))
        if share:
            yield (
                f"attention: packed drops no weights of attention, but the {side} trains with {key} {share:g}; set "
                f"{side}.dropout.attention to 0, or use sdpa"
            )
