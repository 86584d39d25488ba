"""What a student will be that is cut out of its teacher: which blocks it has, as far as that is known before a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError, counted
from ted_ds.models.family import ENCODER, blocks_by_layer
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.block_choice import BY_NUMBER, rounds_of_search


def known_blocks(cut: CutFromTeacher, teacher: ModelFacts) -> dict[str, list[int]] | None:
    """The blocks of each stack by its name; None where a run has to measure which they are."""
    if cut.num_blocks is None:  # all of them, where only the width is another one
        return cut.of_stacks or {stack: [*range(depth)] for stack, depth in teacher.blocks_of_stacks.items()}
    if cut.is_measured:
        return None
    choose = BY_NUMBER[cut.choose]
    return {stack: choose(depth, cut.number_of(depth)) for stack, depth in teacher.blocks_of_stacks.items()}


def staying_blocks(teacher: ModelFacts) -> tuple[int, ...]:
    """Blocks that no choice leaves out."""
    return (0,) if teacher.family.has_short_first_block else ()


def rounds_in(recipe: Recipe, cut: CutFromTeacher, teacher: ModelFacts) -> list[int]:
    """How many blocks each round of a search tries to leave out."""
    most_passes = cut.search_tokens // recipe.student.calibration.heldout_tokens
    depth = teacher.num_blocks
    free, left_out = depth - len(staying_blocks(teacher)), depth - cut.number_of(depth)
    return rounds_of_search(free, left_out, most_passes)


def blocks_differ(teacher: ModelFacts) -> bool:
    """Whether some blocks have other parameters than others, so that it matters which are chosen."""
    return len({_size(shapes) for shapes in teacher.parameters.of_layers}) > 1


def place_of_blocks(cut: CutFromTeacher, teacher: ModelFacts) -> str:
    """Where the recipe says which blocks there are."""
    if cut.num_blocks is not None:
        return "student.from_teacher.num_blocks"
    return "student.from_teacher" + ("" if teacher.family.is_stacked else ".blocks")


def cut_facts(cut: CutFromTeacher, teacher: ModelFacts) -> ModelFacts:
    """What the student will be; of blocks that a run has yet to choose, the most costly ones.

    Raises:
        ConfigError: The teacher has no such blocks, or no model has them as they are.
    """
    depths = teacher.blocks_of_stacks
    is_share_of_each = cut.is_share and not cut.is_measured
    if cut.num_blocks is not None and (is_share_of_each or not teacher.family.is_stacked):
        if cut.number_of(teacher.num_blocks) > teacher.num_blocks:
            raise ConfigError(
                f"{cut.num_blocks}: the teacher has {counted(teacher.num_blocks, 'block')}; use as many or fewer"
            )
        if cut.is_measured and teacher.family.num_shared_key is not None:
            raise ConfigError(
                f"{cut.num_blocks} by choose: {cut.choose}: layers of this {teacher.model_type} share their blocks, "
                "and none can be tried without; use choose: spread"
            )
    elif cut.num_blocks is not None or (cut.of_stacks and cut.of_stacks.keys() != depths.keys()):
        rule = "has one stack of blocks: give blocks or num_blocks"
        if teacher.family.is_stacked:
            rule = "is an encoder-decoder: give encoder_blocks and decoder_blocks, or a share as num_blocks"
        raise ConfigError(f"the teacher, a {teacher.model_type}, {rule}")
    of_stacks = known_blocks(cut, teacher)
    chosen, before, problems = [], 0, []
    for stack, blocks in (of_stacks or {}).items():
        depth = depths[stack]
        whose = f"the teacher's {stack}" if stack else "the teacher"
        has = f"{whose} has {counted(depth, 'block')}, numbered from 0"
        problems += [
            f"block {block} does not exist ({has}); use {'0' if depth == 1 else f'0..{depth - 1}'}"
            for block in dict.fromkeys(blocks)
            if block >= depth
        ]
        chosen += [before + block for block in blocks]
        before += depth
    if problems:
        raise ConfigError("\n".join(problems))
    if of_stacks is None:
        chosen = _most_costly(cut, teacher)
    reason = _uncuttable(teacher, chosen)
    if reason is not None:
        raise ConfigError(reason)
    return replace(
        teacher,
        num_blocks=len(chosen),
        num_encoder_blocks=len(of_stacks[ENCODER]) if of_stacks is not None and ENCODER in of_stacks else None,
        parameters=teacher.parameters.cut(chosen),
    )


def _size(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _most_costly(cut: CutFromTeacher, teacher: ModelFacts) -> list[int]:
    """As many blocks as are to be chosen, of those with most parameters."""
    stay, sizes = staying_blocks(teacher), [_size(shapes) for shapes in teacher.parameters.of_layers]
    order = sorted(range(len(sizes)), key=lambda block: (block not in stay, -sizes[block], block))
    return sorted(order[: cut.number_of(teacher.num_blocks)])


def _uncuttable(teacher: ModelFacts, blocks: Sequence[int]) -> str | None:
    """Why no model has these of a teacher's blocks (numbered from 0) as they are; None where nothing is against it.

    What only transformers can tell is seen when it is cut (:func:`ted_ds.models.cut_config.refuse_other_blocks`).
    """
    if teacher.family.has_short_first_block and blocks[0] != 0:
        return (
            f"begins with block {blocks[0]}, but the first block of a {teacher.model_type} lacks a norm that all "
            "others have, and none of them would be itself without; begin with block 0"
        )
    if teacher.family.has_short_first_block and 0 in blocks[1:]:
        return (
            f"repeats block 0, but the first block of a {teacher.model_type} lacks a norm that all others have, and it "
            "would not be itself with one; use block 0 once, and first"
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
        f"{counted(len(blocks), 'layer')} they go through {found}; choose as many layers of each"
    )
