"""What healing a student comes to: which states its blocks are brought to, mistakes, and words. Without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.planning.cut_facts import known_blocks
from ted_ds.planning.layer_pairs import layer_pairs_of


def heal_targets(recipe: Recipe, teacher: ModelFacts, student: ModelFacts, blocks: Sequence[int]) -> dict[int, int]:
    """For layers of a student of one stack, the layer of the teacher that each is brought to.

    Not for the first blocks where they are the teacher's own, which put out what they did.

    Args:
        recipe: The recipe, with ``student.heal``.
        teacher: The teacher's facts.
        student: The student's.
        blocks: Those of the teacher's that were kept, from 0.

    Raises:
        ValueError: The layer map does not fit these models; one message per line.
    """
    heal = recipe.student.heal
    assert heal is not None
    if heal.towards == "cut":
        # the state before block b is that of layer b
        wanted = dict(enumerate([*blocks[1:], teacher.num_blocks], start=1))
    else:
        wanted = {int(own): int(theirs) for own, theirs in layer_pairs_of(recipe, student, teacher) if own and theirs}
    shapes, teacher_shapes = (facts.parameters.of_layers for facts in (student, teacher))
    same = (number == block and shapes[number] == teacher_shapes[block] for number, block in enumerate(blocks))
    own = sum(1 for _ in itertools.takewhile(bool, same))
    return {layer: target for layer, target in wanted.items() if layer > own or layer != target}


def heal_mistakes(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None) -> Iterator[str]:
    """What is wrong with healing this student: lines of the recipe."""
    if recipe.student.heal is None or teacher is None or student is None or teacher.family.is_stacked:
        return
    if student.hidden_size != teacher.hidden_size:
        yield (
            f"student.heal: the student's states are {student.hidden_size} wide and the teacher's "
            f"{teacher.hidden_size}, so that none can be brought to another; keep the teacher's hidden size, or remove "
            "it"
        )
    try:
        heal_targets(recipe, teacher, student, [])
    except ValueError as error:
        yield from str(error).splitlines()


def num_unknowns(student: ModelFacts) -> int:
    """Of each number that an output map puts out, at most over the blocks, without a bias; 0 where it is not known."""
    name = student.family.output_map or ""
    shapes = [maps[name] for maps in student.parameters.maps if name in maps]
    return max((math.prod(shape) // student.hidden_size for shape in shapes), default=0)


def heal_doubts(recipe: Recipe, student: ModelFacts | None) -> Iterator[str]:
    """What is no mistake in healing it, and should be known."""
    if recipe.student.heal is None or student is None:
        return
    tokens, unknowns = recipe.student.calibration.tokens, num_unknowns(student)
    if tokens < unknowns:
        yield (
            f"student.calibration.tokens: {tokens:,} for {unknowns:,} unknowns of each number that a block's output "
            "map puts out: what they leave open stays as it was; more tokens heal better"
        )


def heal_in_words(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None) -> Iterator[str]:
    """Which states the student's blocks are brought to, as far as that is known before a run."""
    cut = recipe.student.from_teacher
    if recipe.student.heal is None or teacher is None or student is None or cut is None:
        return
    known = known_blocks(cut, teacher)
    if known is None and recipe.student.heal.towards == "cut":
        yield "heal      each block's output to the teacher's state before the next one"
        return
    targets = heal_targets(recipe, teacher, student, (known or {}).get("", []))
    pairs = " ".join(f"{own}<-{theirs}" for own, theirs in targets.items())
    yield f"heal      {f'student<-teacher {pairs}' if pairs else 'nothing: all blocks put out what they did'}"
