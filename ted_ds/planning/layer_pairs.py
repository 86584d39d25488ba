"""The layer map of two models, as the recipe says it."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.layer_map import LayerPairs, layers_outside, make_layer_map_of_stacks, number_of


def layer_mistakes(recipe: Recipe, student: ModelFacts | None, teacher: ModelFacts | None) -> list[str]:
    """What is wrong in a layer map that is given for one model, while the other is not known.

    A student is as deep as the list of blocks that it is cut by, right or wrong.
    """
    cut = recipe.student.from_teacher
    of_cut = None if cut is None or cut.num_blocks is not None else cut.of_stacks
    depths = {
        "student": student.blocks_of_stacks if student else {stack: len(own) for stack, own in (of_cut or {}).items()},
        "teacher": teacher.blocks_of_stacks if teacher else {},
    }
    pairs = recipe.layer_map.pairs or ()
    return [line for side, own in depths.items() if own for line in layers_outside(pairs, side, own)]


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
