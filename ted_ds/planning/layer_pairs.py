"""The layer map of two models, as the recipe says it."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.layer_map import LayerPairs, make_layer_map_of_stacks, number_of


def layer_pairs_of(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> LayerPairs:
    """The pairs of layers that are matched, where a method matches any.

    Raises:
        ValueError: The recipe's layer map does not fit these models; one message per line.
    """
    pairs = make_layer_map_of_stacks(
        recipe.layer_map.kind,
        student_blocks=student.blocks_of_stacks,
        teacher_blocks=teacher.blocks_of_stacks,
        num_pairs=recipe.layer_map.num_pairs,
        pairs=recipe.layer_map.pairs,
    )
    if recipe.distill.balance is not None and not any(number_of(layer) for layer, _ in pairs):
        raise ValueError(
            f"distill.balance: {recipe.distill.balance}: layer_map matches embeddings alone, and the gradient of that "
            "reaches no block to be compared on; match another layer, too, or give weights without balance"
        )
    return pairs
