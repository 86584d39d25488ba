"""What a student will be that is cut out of its teacher. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError
from ted_ds.models.family import ENCODER, blocks_by_layer
from ted_ds.models.files import ModelFacts


def cut_facts(recipe: Recipe, teacher: ModelFacts) -> ModelFacts:
    """What the student will be that the recipe cuts out of its teacher.

    Raises:
        ConfigError: The teacher has no such blocks, or no model has them as they are.
    """
    cut = recipe.student.from_teacher
    assert cut is not None
    chosen, before = [], 0
    if cut.of_stacks.keys() != teacher.blocks_of_stacks.keys():
        rule = "has one stack of blocks: give blocks"
        if teacher.family.is_stacked:
            rule = "is an encoder-decoder: give encoder_blocks and decoder_blocks, and no blocks"
        raise ConfigError(f"the teacher, a {teacher.model_type}, {rule}")
    for stack, depth in teacher.blocks_of_stacks.items():
        blocks = cut.of_stacks[stack]
        outside = [block for block in blocks if block >= depth]
        if outside:
            whose = f"the teacher's {stack}" if stack else "the teacher"
            raise ConfigError(
                f"block {outside[0]} does not exist ({whose} has {depth} blocks, numbered from 0); use 0..{depth - 1}"
            )
        chosen += [before + block for block in blocks]
        before += depth
    reason = _uncuttable(teacher, chosen)
    if reason is not None:
        raise ConfigError(reason)
    return replace(
        teacher,
        num_blocks=len(chosen),
        num_encoder_blocks=len(cut.of_stacks[ENCODER]) if ENCODER in cut.of_stacks else None,
        parameters=teacher.parameters.cut(chosen),
    )


def _uncuttable(teacher: ModelFacts, blocks: Sequence[int]) -> str | None:
    """Why no model has these of a teacher's blocks (numbered from 0) as they are; None where nothing is against it.

    What only transformers can tell is seen when it is cut (:func:`ted_ds.models.cut_config.refuse_other_blocks`).
    """
    if teacher.family.has_short_first_block and blocks[0] != 0:
        return (
            f"begins with block {blocks[0]}, but the first block of a {teacher.model_type} lacks a norm that all "
            "others have, and none of them would be itself without; begin with block 0"
        )
    by_layer = teacher.parameters.blocks_by_layer
    if by_layer is None:
        return None
    wanted = [by_layer[block] for block in blocks]
    found = [*blocks_by_layer(len(blocks), len(teacher.parameters.of_blocks))]
    if wanted == found:
        return None
    return (
        f"these layers go through the weights {wanted} (numbered from 0), but in a model of "
        f"{len(blocks)} layers they go through {found}; choose as many layers of each"
    )
