"""The layer map of two models, as the recipe says it."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.layer_map import LayerPairs, make_layer_map_of_stacks


def layer_pairs_of(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> LayerPairs:
    """The pairs of layers that are matched, where a method matches any.

    Raises:
        ValueError: The recipe's layer map does not fit these models; one message per line.
    """
    return make_layer_map_of_stacks(
        recipe.layer_map.kind,
        student_blocks=student.blocks_of_stacks,
        teacher_blocks=teacher.blocks_of_stacks,
        num_pairs=recipe.layer_map.num_pairs,
        pairs=recipe.layer_map.pairs,
    )
