"""Embeddings and first blocks that teacher and student have in common, run once for both in Stage II."""

from __future__ import annotations

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import StageTwo
from ted_ds.models.frozen_prefix import PrefixStates, tensors_of_prefix, what_drops
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.layer_map import number_of
from ted_ds.planning.frozen_blocks import (
    SharedBlocks,
    dropped_in_words,
    first_looked_at,
    in_words,
    of_relations,
    why_apart,
    within_stages,
)
from ted_ds.planning.phase import DISTILL
from ted_ds.planning.pipeline_cut import borders_of
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import gathered


def share_prefix(build: Assembly, stage: StageTwo) -> None:
    """Let the student, which runs first, lend its teacher the states of the frozen blocks that are that one's own.

    To be called before an engine takes the student. Every rank must call it.
    """
    if build.recipe.student.freeze_blocks is None or stage.teacher is None:
        return
    shared = _shared(build, stage, build.recipe.student.freeze_blocks)
    if shared.number:
        here = build.stage(DISTILL.name)
        runs = here is None or "teacher" in here.runs
        freed = build.world.gather(_lend(stage.student, stage.teacher, shared.number) if runs else 0)
        build.screen.say(f"  parameters of the teacher's first blocks, freed per rank: {_listed(freed)}")
    build.screen.say(f"  frozen blocks: {in_words(shared)}")


def _lend(student: TappedModel, teacher: FrozenModel, number: int) -> int:
    """Let a teacher, or what a pipeline stage has of it, begin behind the shared blocks that are here.

    Of a stage that begins within them, the state that comes for the student is the teacher's, too.

    Returns:
        The number of its parameters that were freed.
    """
    own, theirs = student.share, teacher.tapped.share
    if own.start != theirs.start or own.start > number:
        return 0
    behind = min(number, own.stop, theirs.stop)
    layers = {number_of(layer) for layer in teacher.tapped.layers_here.values()}
    return teacher.begin_behind(behind, PrefixStates(student, {behind, *(one for one in layers if one <= behind)}))


def _shared(build: Assembly, stage: StageTwo, frozen: int) -> SharedBlocks:
    """How many blocks are shared: as recipe and files allow it, and as weights are equal."""
    student, teacher = stage.student, stage.teacher
    assert teacher is not None
    reason = why_apart(build.recipe, build.facts("teacher"), build.facts("student"))
    if build.hosting.host == "int8":
        reason = reason or "the teacher computes in 8 bits"
    for drops in filter(None, build.world.gather(what_drops(student.model, student.family, frozen))):
        reason = reason or dropped_in_words(build.recipe, build.facts("student"), drops)
    if reason is not None:
        return SharedBlocks(0, reason)
    looked_at = first_looked_at(build.recipe, build.facts("teacher"), build.facts("student"))
    stop = max(build.world.gather(teacher.tapped.share.stop))
    most = SharedBlocks(frozen)
    if looked_at < frozen:
        most = SharedBlocks(looked_at, of_relations(looked_at))
    if stop < most.number:
        most = SharedBlocks(stop, "no later layer is asked for")
    most = within_stages(most, borders_of(build.plan.stages[DISTILL.name]))
    found = build.world.gather(num_equal(student, teacher.tapped, most.number))
    number, differing = min(found, key=lambda one: one[0])
    return most if differing is None else SharedBlocks(number, f"the weights of both differ in {differing}")


def num_equal(student: TappedModel, teacher: TappedModel, most: int) -> tuple[int, str | None]:
    """How many of the first blocks are the same to the bit in both, with all before them; and what is not, if any is.

    Of a pipeline stage's shares: of what either has here, which is not the same where the other has it elsewhere.
    Every rank must call it: weights may be sharded on either side, or on both.
    """
    seen: set[str] = set()
    found, differing = most, None
    for number in range(most + 1):  # embeddings and what all blocks share, then block after block
        own, theirs = (tensors_of_prefix(one.model, one.family, number) for one in (student, teacher))
        for name in [name for name in {**own, **theirs} if name not in seen]:
            seen.add(name)
            # all of them, whatever is found: to gather is to communicate
            equal = name in own and name in theirs and _are_equal(own[name], theirs[name])
            if not equal and differing is None:
                found, differing = max(number - 1, 0), name
    return found, differing


def _are_equal(own: Tensor, theirs: Tensor) -> bool:
    with gathered([own]), gathered([theirs]):
        alike = type(own.data) is type(theirs.data) and (own.shape, own.dtype) == (theirs.shape, theirs.dtype)
        return alike and torch.equal(own, theirs.to(own.device))


def _listed(counts: list[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)
