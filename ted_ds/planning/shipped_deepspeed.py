"""The DeepSpeed files that ship, from which a run has one where its recipe leaves that open (``deepspeed: auto``)."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.config.shipped import AUTO, DEEPSPEED, shipped

SHARDED, SHARDED_WEIGHTS, OF_PIPELINES = "zero2", "zero3", "zero1"


def is_open(recipe: Recipe) -> bool:
    """Whether the recipe leaves the choice to the run."""
    return recipe.deepspeed == AUTO


def names_for(recipe: Recipe, num_ranks: int) -> tuple[str, ...]:
    """Those that come into question, from the fastest to the one that takes least memory.

    One rank has nobody to share weights with, and a pipeline has no gradients in shards.
    """
    if recipe.pipeline.stages > 1:
        return (OF_PIPELINES,)
    return (SHARDED,) if num_ranks == 1 else (SHARDED, SHARDED_WEIGHTS)


def with_file(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one of them."""
    return recipe.model_copy(update={"deepspeed": shipped(f"{DEEPSPEED}/{name}.json")})


def with_some_file(recipe: Recipe) -> Recipe:
    """The recipe with a file in any case: where the choice is open, the first that comes into question.

    They differ in how models are sharded alone, so that whatever else is checked of one is of the others, too.
    """
    return with_file(recipe, names_for(recipe, 1)[0]) if is_open(recipe) else recipe
