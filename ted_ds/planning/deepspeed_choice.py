"""Which DeepSpeed file that ships a run has, where its recipe leaves that open: the fastest by which all phases fit.

How models are sharded decides no result, and weights of the teacher in 8 bits do: files are tried with the teacher as
the recipe has it, or else whole, before :mod:`ted_ds.planning.hosting` looks for a smaller place for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ted_ds.config.schema import Recipe
from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.family_uses import refused_uses
from ted_ds.planning.hosting import USABLE, Machine
from ted_ds.planning.memory import frozen_bytes, gib
from ted_ds.planning.mistakes import Mistakes, check_deepspeed
from ted_ds.planning.phase_memory import phase_memories, with_head
from ted_ds.planning.plan import Plan
from ted_ds.planning.shipped_deepspeed import names_for, with_file


@dataclass(frozen=True)
class Candidate:
    """A file, and what a rank's device holds by it in the phase that needs most."""

    name: str
    needed: int
    phase: str

    @property
    def size_in_words(self) -> str:
        """What it takes."""
        return f"about {gib(self.needed)} in {self.phase}"

    @property
    def in_words(self) -> str:
        """The same, with its name."""
        return f"{self.name} takes {self.size_in_words}"


@dataclass(frozen=True)
class DeepSpeedChoice:
    """The file that was chosen."""

    name: str
    why: str


def candidates(recipe: Recipe, plan: Plan, *, num_ranks: int, device_is_host: bool) -> Iterator[Candidate]:
    """The files that come into question, and what they take; none of a pipeline, which has one alone.

    Args:
        recipe: The recipe, with any of the files.
        plan: Its plan, with both models known.
        num_ranks: Ranks.
        device_is_host: Whether the device is the CPU.
    """
    names = names_for(recipe, num_ranks)
    for name in names:
        one, found = with_file(recipe, name), Mistakes()
        check_deepspeed(one, num_ranks, found)
        found.add("", *refused_uses(one, plan.teacher, plan.student))
        if found.found and name != names[0]:  # the first was checked with all else
            continue
        phase, needed = "", 0
        if recipe.pipeline.stages == 1:
            phase, needed = _most(one, plan, num_ranks=num_ranks, device_is_host=device_is_host)
        yield Candidate(name, needed, phase)


def _most(recipe: Recipe, plan: Plan, *, num_ranks: int, device_is_host: bool) -> tuple[str, int]:
    """The phase that needs most on a rank's device, and how much."""
    assert plan.teacher is not None
    config = deepspeed_json_of(recipe, plan)
    is_decided = recipe.teacher.host != "auto" and plan.teacher.quantisation is None
    host = recipe.teacher.host if is_decided else "replica"
    teacher = with_head(recipe, plan.teacher)
    own = frozen_bytes(teacher, host=host, precision=recipe.precision, world_size=num_ranks)
    phases = phase_memories(recipe, plan, config, world_size=num_ranks, host=host)
    totals = {
        one.phase: one.total(config, device_is_host=device_is_host) + (own if one.hosts_teacher else 0)
        for one in phases
    }
    busiest = max(totals, key=lambda phase: totals[phase])
    return busiest, totals[busiest]


def choose_deepspeed(recipe: Recipe, plan: Plan, machine: Machine, *, kept: str | None = None) -> DeepSpeedChoice:
    """The first that fits into what is free, or the one that takes least.

    Args:
        recipe: The recipe, with any of the files.
        plan: Its plan, with both models known.
        machine: What there is for each rank.
        kept: What the run began with; it keeps that as long as it comes into question.
    """
    found = [*candidates(recipe, plan, num_ranks=machine.world_size, device_is_host=machine.device_is_host)]
    if any(one.name == kept for one in found):
        assert kept is not None
        return DeepSpeedChoice(kept, "as when this run began")
    if len(found) == 1:
        return DeepSpeedChoice(found[0].name, _why_alone(recipe, machine.world_size))
    free = f"{gib(machine.free_device)} free per rank"
    fits = next((one for one in found if one.needed <= USABLE * machine.free_device), None)
    if fits is None:
        least = min(found, key=lambda one: one.needed)
        return DeepSpeedChoice(least.name, f"{_in_words(found)}; of {free} that is least")
    larger = found[: found.index(fits)]
    before = f"; {_in_words(larger)}, which does not fit" if larger else ""
    return DeepSpeedChoice(fits.name, f"{fits.size_in_words}, {free}{before}")


def describe_choice(recipe: Recipe, plan: Plan, *, num_ranks: int) -> str:
    """What a run will choose by, in words for ``ted-ds check``; empty where nothing is chosen."""
    if not plan.chooses_deepspeed:
        return ""
    if plan.teacher is None or plan.student is None:
        return "deepspeed auto: chosen by a run, once both models are known\n"
    found = [*candidates(recipe, plan, num_ranks=num_ranks, device_is_host=False)]
    if len(found) == 1:
        return f"deepspeed auto: {found[0].name}, {_why_alone(recipe, num_ranks)}\n"
    return f"deepspeed auto: the first that fits into a rank's free memory: {_in_words(found)}\n"


def _in_words(found: Sequence[Candidate]) -> str:
    return ", ".join(one.in_words for one in found)


def _why_alone(recipe: Recipe, num_ranks: int) -> str:
    if recipe.pipeline.stages > 1:
        return "for a pipeline"
    return "for one rank" if num_ranks == 1 else "as no other can be used with these settings and models"
