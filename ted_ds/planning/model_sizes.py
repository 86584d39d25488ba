"""How large teacher and student are, and what choosing the student's blocks takes, in words for ``ted-ds check``."""

from __future__ import annotations

from collections.abc import Iterator

from ted_ds.config.cut import CutFromTeacher
from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.models.files import ModelFacts
from ted_ds.numerics.block_choice import passes_of
from ted_ds.planning.cut_facts import blocks_differ, known_blocks, rounds_in
from ted_ds.planning.memory import frozen_bytes, gib
from ted_ds.planning.phase_memory import with_head
from ted_ds.planning.pipeline_cut import forward_operations
from ted_ds.planning.plan import Plan

NUM_COMPARED = {"influence": 4, "search": 5}
"""Choices whose losses are shown beside each other, that of all blocks among them, by how blocks are chosen."""


def describe_sizes(recipe: Recipe, plan: Plan) -> str:
    """What each model has and takes, and what the choice of blocks does; empty while a model is not fetched yet."""
    if plan.teacher is None or plan.student is None:
        return ""
    cut = recipe.student.from_teacher
    lines = [] if cut is None else [*_choice(recipe, cut, plan.teacher), *_narrowing(recipe, cut)]
    whole = _size(recipe, plan.teacher)
    for side, facts in (("teacher", plan.teacher), ("student", plan.student)):
        own = _size(recipe, facts)
        number, size, operations = (
            f" ({100 * one / other:.3g} %)" if side == "student" else "" for one, other in zip(own, whole, strict=True)
        )
        lines.append(
            f"size      {side} {own[0]:,} parameters{number}, {gib(own[1])}{size} in {recipe.precision}, "
            f"{_flop(own[2])} a token in a forward pass{operations}"
        )
    return "".join(f"{line}\n" for line in lines)


def _size(recipe: Recipe, facts: ModelFacts) -> tuple[int, int, float]:
    """A model's parameters, bytes, and operations per token of a forward pass."""
    parameters = with_head(recipe, facts)
    size = frozen_bytes(parameters, host="replica", precision=recipe.precision, world_size=1)
    return parameters.total, size, forward_operations(recipe, facts)


def _flop(operations: float) -> str:
    return f"{operations / 1e9:.3g} GFLOP" if operations >= 1e9 else f"{operations / 1e6:.3g} MFLOP"


def _choice(recipe: Recipe, cut: CutFromTeacher, teacher: ModelFacts) -> Iterator[str]:
    """Which blocks are chosen, or what it takes to say."""
    if cut.num_blocks is None:
        return
    known = known_blocks(cut, teacher)
    number = cut.number_of(teacher.num_blocks)
    if known is not None:
        for stack, blocks in known.items():
            depth = counted(teacher.blocks_of_stacks[stack], f"{stack} block".lstrip())
            shown = " ".join(map(str, blocks))
            yield f"cut       {len(blocks)} of the teacher's {depth} by {cut.choose}: {shown}"
        return
    beginning = f"cut       {number} of the teacher's {counted(teacher.num_blocks, 'block')} by {cut.choose}"
    tokens = recipe.student.calibration
    parts = [
        f"1 forward pass of the teacher over {tokens.tokens:,} calibration tokens",
        f"{NUM_COMPARED[cut.choose]} over {tokens.heldout_tokens:,} held-out ones",
    ]
    if cut.choose == "search":
        rounds = rounds_in(recipe, cut, teacher)
        tried = [f"{counted(len(rounds), 'round')} that try {counted(max(rounds, default=0), 'block')} at most"]
        early = sum(one == 1 for one in rounds)
        tried += [f"in {early} of them the block of least influence goes untried"] if early else []
        parts.append(f"{passes_of(rounds)} more over these in {', '.join(tried)}")
    yield f"{beginning}: {'; '.join(parts)}"
    if blocks_differ(teacher):
        yield (
            "note      student.from_teacher: blocks of this teacher differ in size; the plan is of the most costly "
            f"{number}"
        )


def _narrowing(recipe: Recipe, cut: CutFromTeacher) -> Iterator[str]:
    """What is kept of each block, and what it takes to choose it."""
    if cut.widths:
        kept = ", ".join(f"{key} {number}" for key, number in cut.widths.items())
        passes = "in the same pass" if cut.is_measured else "1 forward pass of the teacher"
        yield (
            f"cut       {kept} by what units do: {passes} over {recipe.student.calibration.tokens:,} calibration tokens"
        )
