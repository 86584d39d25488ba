"""Where the teacher's weights are kept: the first host that fits beside what the phases need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ted_ds.config.schema import Recipe
from ted_ds.models.parameters import Parameters
from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.filling import filling_memory
from ted_ds.planning.memory import SHARDED_HOSTS, frozen_bytes, gib
from ted_ds.planning.phase import HEAL_STUDENT
from ted_ds.planning.phase_memory import PhaseMemory, phase_memories, with_head
from ted_ds.planning.plan import Plan
from ted_ds.planning.stage_memory import describe_stages

HOSTS = ("replica", "int8", "zero3", "cpu_offload", "nvme_offload")
"""From the fastest to the smallest."""
IN_WORDS = {
    "replica": "whole on each rank",
    "int8": "whole on each rank, its blocks in 8 bits",
    "zero3": "ZeRO-3 sharded",
    "cpu_offload": "ZeRO-3 sharded, in host memory",
    "nvme_offload": "ZeRO-3 sharded, on disk",
}
USABLE = 0.9
"""Of the free memory: what is left is for kernels' working space and what an estimate misses."""


@dataclass(frozen=True)
class Hosting:
    """Where the teacher's weights are."""

    host: str
    why: str
    precision: str | None = None
    """What it computes in; None for the recipe's."""
    precision_why: str | None = None
    """How that was found out, where the recipe leaves it open."""

    @property
    def is_sharded(self) -> bool:
        """Whether an engine of ZeRO-3 holds them."""
        return self.host in SHARDED_HOSTS


@dataclass(frozen=True)
class Machine:
    """What there is for each rank."""

    world_size: int
    """Ranks."""
    free_device: int
    """Free bytes of a rank's device."""
    free_host: int
    """Free bytes of host memory for a rank."""
    device_is_host: bool
    """Whether the device is the CPU: then there is nothing to offload to but a disk."""
    torchao_is_there: bool
    """Whether it is installed."""


def choose_host(
    recipe: Recipe,
    plan: Plan,
    config: Mapping[str, Any],
    machine: Machine,
    *,
    began_whole: bool = False,
) -> Hosting:
    """The first host whose device memory, beside the phase that needs most, is free.

    Args:
        recipe: The recipe; its ``teacher.host`` is ``auto``.
        plan: Its plan, with both models known.
        config: The DeepSpeed JSON.
        machine: What there is for each rank.
        began_whole: Whether phases may be complete that saw the teacher's own weights: then 8 bits are out.
    """
    assert plan.teacher is not None
    world_size, free_device, free_host = machine.world_size, machine.free_device, machine.free_host
    device_is_host = machine.device_is_host
    teacher = with_head(recipe, plan.teacher)
    whole = frozen_bytes(teacher, host="replica", precision=recipe.precision, world_size=world_size)
    # a whole model comes to a device through host memory
    cannot_load = None
    if not device_is_host and whole > USABLE * free_host:
        cannot_load = f"to load {gib(whole)} on each rank does not fit into {gib(free_host)} of host memory"
    no_torchao = None if machine.torchao_is_there else "torchao is not installed"
    no_int8 = "the run began without it" if began_whole else no_torchao
    refused = plan.teacher.family.refused
    no_cpu_offload = _no_cpu_offload(recipe, teacher, world_size, free_host, device_is_host=device_is_host)
    no_disk = None if recipe.teacher.offload_dir else "teacher.offload_dir is not set"
    impossible: dict[str, str | None] = {
        "replica": cannot_load,
        "int8": refused.get("int8") or no_int8 or cannot_load,
        "zero3": refused.get("zero3") or (None if world_size > 1 else "one rank has nobody to share with"),
        "cpu_offload": refused.get("zero3") or no_cpu_offload,
        "nvme_offload": refused.get("zero3") or no_disk,
    }
    left_out, least = [], ("replica", math.inf)
    for host in HOSTS:
        reason = impossible[host]
        if reason is not None:
            left_out.append(f"{host}: {reason}")
            continue
        phases = _memories(recipe, plan, config, world_size=world_size, host=host)
        totals = {
            one.phase: one.total(config, device_is_host=device_is_host) for one in phases if one.hosts_teacher
        } or {"evaluation": 0}
        own = frozen_bytes(teacher, host=host, precision=recipe.precision, world_size=world_size)
        busiest = max(totals, key=lambda phase: totals[phase])
        beside = totals[busiest]
        where = f"{gib(own)} beside about {gib(beside)} of {busiest}"
        if own + beside <= USABLE * free_device:
            because = f"; {'; '.join(left_out)}" if left_out else ""
            return Hosting(host, f"{where}, {gib(free_device)} free per rank{because}")
        left_out.append(f"{host}: {where} does not fit")
        least = min(least, (host, own), key=lambda one: one[1])
    return Hosting(
        least[0], f"nothing fits into {gib(free_device)} free per rank, this is least: {'; '.join(left_out)}"
    )


def describe_memory(recipe: Recipe, plan: Plan, *, num_ranks: int) -> str:
    """What each phase needs, in words, for ``ted-ds check``; empty while a model is not fetched yet."""
    if plan.teacher is None or plan.student is None:
        return ""
    config = deepspeed_json_of(recipe, plan)
    host = recipe.teacher.host
    if recipe.pipeline.stages > 1:
        # a student is healed whole, as it is evaluated, by models in ZeRO-3 shards
        memories = phase_memories(recipe, plan, config, world_size=num_ranks, host="zero3")
        healing = [_in_words(one) for one in memories if one.phase == HEAL_STUDENT.name]
        return "".join(f"{line}\n" for line in healing) + describe_stages(recipe, plan, config, num_ranks=num_ranks)
    chosen = "replica" if host == "auto" and plan.teacher.quantisation is not None else host
    hosts = HOSTS if chosen == "auto" else (chosen,)
    teacher = with_head(recipe, plan.teacher)
    sizes = {
        one: frozen_bytes(teacher, host=one, precision=recipe.precision, world_size=num_ranks)
        for one in hosts
        if one == chosen
        or ((one != "zero3" or num_ranks > 1) and (one != "nvme_offload" or recipe.teacher.offload_dir))
    }
    memories = _memories(recipe, plan, config, world_size=num_ranks, host=hosts[0])
    lines = [_in_words(one) for one in memories]
    choice = " (the first that fits)" if chosen == "auto" else ""
    of_hosts = ", ".join(f"{one} {gib(size)}" for one, size in sizes.items())
    lines.append(f"memory    teacher, per rank: {of_hosts}{choice}")
    return "".join(f"{line}\n" for line in lines)


def _memories(
    recipe: Recipe, plan: Plan, config: Mapping[str, Any], *, world_size: int, host: str
) -> list[PhaseMemory]:
    """What the phases need, and what filling the teacher's cache does, which is before the last of them."""
    phases, filling = (
        phase_memories(recipe, plan, config, world_size=world_size, host=host),
        filling_memory(recipe, plan),
    )
    return phases if filling is None else [*phases[:-1], filling, *phases[-1:]]


def _in_words(one: PhaseMemory) -> str:
    """What a phase needs."""
    parts = [f"weights {gib(one.trained.parameters + one.frozen)}"]
    if one.num_trained:
        parts += [f"gradients {gib(one.trained.gradients)}", f"optimizer {gib(one.trained.optimizer)}"]
    parts += [f"sums {gib(one.sums)}"] if one.sums else []
    parts += [f"activations about {gib(one.activations)}"] if one.activations else []
    parts += [f"(before, to solve filters, {gib(one.sums_before)})"] if one.sums_before else []
    parts += [f"buffers {gib(one.buckets)} on a GPU"] if one.buckets else []
    parts += ["teacher"] if one.hosts_teacher else []
    parts += [f"states {gib(one.on_host)} in host memory"] if one.on_host else []
    return f"memory    {one.phase:16} {' + '.join(parts)}"


def _no_cpu_offload(
    recipe: Recipe, teacher: Parameters, world_size: int, free_host: int, *, device_is_host: bool
) -> str | None:
    if device_is_host:
        return "the device is the host"
    own = frozen_bytes(teacher, host="zero3", precision=recipe.precision, world_size=world_size)
    return None if own <= USABLE * free_host else f"{gib(own)} do not fit into {gib(free_host)} of host memory"
