"""What healing a student takes: operations, and bytes on each rank. Without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.planning.heal import num_unknowns
from ted_ds.planning.memory import ITEM_BYTES
from ted_ds.planning.pipeline_cut import forward_operations

FP64_BYTES = 8
PASSES_OF_STUDENT = 2
"""Through each block: to sum up what its map is solved from, and with the new map."""
MATRICES = 4
"""Of the width of a map's inputs, squared: the sums of either part, what is factorised, and its factor."""


@dataclass(frozen=True)
class HealCost:
    """Of all blocks together, where all are healed."""

    tokens: int
    """Of both parts of the calibration data."""
    unknowns: int
    """Of each number that a block's output map puts out, at most."""
    in_passes: float
    """Operations of forward passes and sums, over all ranks (multiply-adds counted twice)."""
    in_solving: float
    """Operations that one rank does while the others wait."""
    sums_bytes: int
    """On each rank's device."""
    states_bytes: int
    """In each rank's host memory: the student's before and behind a block, and the teacher's."""


def heal_cost(recipe: Recipe, teacher: ModelFacts, student: ModelFacts, *, num_ranks: int) -> HealCost:
    """What ``student.heal`` takes of such models."""
    heal, calibration = recipe.student.heal, recipe.student.calibration
    assert heal is not None
    tokens = calibration.tokens + calibration.heldout_tokens
    width, unknowns = student.hidden_size, num_unknowns(student)
    through_models = forward_operations(recipe, teacher) + PASSES_OF_STUDENT * forward_operations(recipe, student)
    sums = 2.0 * unknowns * (unknowns + width)
    factor, solution = unknowns**3 / 3, 2.0 * unknowns**2 * width
    judging = 2.0 * unknowns**2 * width
    state = tokens * width * ITEM_BYTES[recipe.precision] // num_ranks
    has_norm = student.family.norm_behind_map is not None
    return HealCost(
        tokens,
        unknowns,
        tokens * (through_models + student.num_blocks * sums),
        student.num_blocks * len(heal.strengths) * (factor + solution + judging),
        FP64_BYTES * (MATRICES * unknowns * unknowns + MATRICES * unknowns * width),
        (3 + has_norm) * state,
    )
