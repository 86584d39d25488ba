"""Where the teacher's weights are kept: what each phase needs on a rank, and the first host that fits beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ted_ds.config.deepspeed import read_deepspeed_json
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Filters, Recipe
from ted_ds.config.tasks import CausalLm
from ted_ds.memory import Trained, activation_bytes, bucket_bytes, frozen_bytes, gib, on_device, trained_bytes
from ted_ds.models.files import ModelFacts, Parameters
from ted_ds.plan import EAGER_ATTENTION_TYPES, Plan

HOSTS = ("replica", "int8", "zero3", "cpu_offload", "nvme_offload")
"""From the fastest to the smallest."""
SHARDED_HOSTS = ("zero3", "cpu_offload", "nvme_offload")
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

    @property
    def is_sharded(self) -> bool:
        """Whether an engine of ZeRO-3 holds them."""
        return self.host in SHARDED_HOSTS


@dataclass(frozen=True)
class PhaseMemory:
    """What a phase needs on the rank that needs most, but for the teacher's weights."""

    phase: str
    trained: Trained
    activations: int
    """About."""
    hosts_teacher: bool
    frozen: int
    """Other weights that do not train: a frozen student in Stage I, the teacher's filters in Stage II."""
    buckets: int
    """DeepSpeed's buffers for communication, on a device that is not the host."""

    def total(self, config: Mapping[str, Any], *, device_is_host: bool) -> int:
        """All of it that is on the device."""
        trained = self.trained if device_is_host else on_device(self.trained, config)
        return trained.total + self.activations + self.frozen + (0 if device_is_host else self.buckets)


def phase_memories(
    recipe: Recipe, plan: Plan, config: Mapping[str, Any], *, world_size: int, host: str = "replica"
) -> list[PhaseMemory]:
    """What the phases that train need, in order; none while a model is not fetched yet."""
    if plan.teacher is None or plan.student is None:
        return []
    teacher, student = (_with_head(recipe, facts) for facts in (plan.teacher, plan.student))
    facts_of = {"teacher": plan.teacher, "student": plan.student}
    filters = recipe.filters

    def of(
        phase: str, training: PhasePlan, sizes: list[int], *, body: ModelFacts, trains_body: bool, **rest: Any
    ) -> PhaseMemory:
        return PhaseMemory(
            phase,
            trained_bytes(
                sizes,
                config=config,
                precision=recipe.precision,
                world_size=world_size,
                num_frozen=rest.pop("num_frozen", 0),
            ),
            _activations(recipe, training, body) if trains_body else 0,
            buckets=bucket_bytes(config, recipe.precision),
            **rest,
        )

    found = []
    for side, one in (("teacher", teacher), ("student", student)):
        tuning = (recipe.teacher if side == "teacher" else recipe.student).finetune
        if tuning is not None:
            sizes, num_frozen = _trained_sizes(recipe, side, one)
            found.append(
                of(
                    f"finetune_{side}",
                    tuning,
                    sizes,
                    body=facts_of[side],
                    trains_body=True,
                    hosts_teacher=False,
                    frozen=0,
                    num_frozen=num_frozen,
                )
            )
    if recipe.distill.method == "ted":
        assert filters is not None
        for side, one in (("teacher", teacher), ("student", student)):
            training = filters.teacher if side == "teacher" else filters.student
            heads, num_frozen = _probe_heads(recipe, filters, one, facts_of[side], plan)
            student_host = "zero3" if host in SHARDED_HOSTS else "replica"
            body = frozen_bytes(one, host=student_host, precision=recipe.precision, world_size=world_size)
            found.append(
                of(
                    f"filters_{side}",
                    training,
                    [*_bank_sizes(plan, facts_of[side], filters.kind), *heads],
                    body=facts_of[side],
                    trains_body=False,
                    hosts_teacher=side == "teacher",
                    frozen=0 if side == "teacher" else body,
                    num_frozen=num_frozen,
                )
            )
    kind = filters.kind if filters is not None and recipe.distill.method == "ted" else "linear"
    of_teacher = 0
    if recipe.distill.method == "ted":
        width = Parameters((), 0, 0, tuple((size,) for size in _bank_sizes(plan, plan.teacher, kind)))
        of_teacher = frozen_bytes(width, host="replica", precision=recipe.precision, world_size=1)
    sizes, num_frozen = _trained_sizes(recipe, "student", student)
    found.append(
        of(
            "distill",
            recipe.distill,
            [*sizes, *_bank_sizes(plan, plan.student, kind)],
            body=plan.student,
            trains_body=True,
            hosts_teacher=recipe.distill.method != "sft" and recipe.teacher.cache is None,
            frozen=of_teacher,
            num_frozen=num_frozen,
        )
    )
    return found


def choose_host(
    recipe: Recipe,
    plan: Plan,
    config: Mapping[str, Any],
    *,
    world_size: int,
    free_device: int,
    free_host: int,
    device_is_host: bool,
    torchao_is_there: bool,
    began_whole: bool = False,
) -> Hosting:
    """The first host whose device memory, beside the phase that needs most, is free.

    Args:
        recipe: The recipe; its ``teacher.host`` is ``auto``.
        plan: Its plan, with both models known.
        config: The DeepSpeed JSON.
        world_size: Ranks.
        free_device: Free bytes of a rank's device.
        free_host: Free bytes of host memory for a rank.
        device_is_host: Whether the device is the CPU: then there is nothing to offload to but a disk.
        torchao_is_there: Whether it is installed.
        began_whole: Whether phases may be complete that saw the teacher's own weights: then 8 bits are out.
    """
    assert plan.teacher is not None
    teacher = _with_head(recipe, plan.teacher)
    whole = frozen_bytes(teacher, host="replica", precision=recipe.precision, world_size=world_size)
    # a whole model comes to a device through host memory
    cannot_load = None
    if not device_is_host and whole > USABLE * free_host:
        cannot_load = f"to load {gib(whole)} on each rank does not fit into {gib(free_host)} of host memory"
    no_int8 = "the run began without it" if began_whole else None if torchao_is_there else "torchao is not installed"
    impossible: dict[str, Callable[[], str | None]] = {
        "replica": lambda: cannot_load,
        "int8": lambda: no_int8 or cannot_load,
        "zero3": lambda: None if world_size > 1 else "one rank has nobody to share with",
        "cpu_offload": lambda: _no_cpu_offload(recipe, teacher, world_size, free_host, device_is_host=device_is_host),
        "nvme_offload": lambda: None if recipe.teacher.offload_dir else "teacher.offload_dir is not set",
    }
    left_out, least = [], ("replica", math.inf)
    for host in HOSTS:
        reason = impossible[host]()
        if reason is not None:
            left_out.append(f"{host}: {reason}")
            continue
        phases = phase_memories(recipe, plan, config, world_size=world_size, host=host)
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
    config, host = read_deepspeed_json(recipe.deepspeed), recipe.teacher.host
    hosts = HOSTS if host == "auto" else (host,)
    teacher = _with_head(recipe, plan.teacher)
    sizes = {
        one: frozen_bytes(teacher, host=one, precision=recipe.precision, world_size=num_ranks)
        for one in hosts
        if one == host or ((one != "zero3" or num_ranks > 1) and (one != "nvme_offload" or recipe.teacher.offload_dir))
    }
    lines = []
    for one in phase_memories(recipe, plan, config, world_size=num_ranks, host=hosts[0]):
        parts = [
            f"weights {gib(one.trained.parameters + one.frozen)}",
            f"gradients {gib(one.trained.gradients)}",
            f"optimizer {gib(one.trained.optimizer)}",
        ]
        parts += [f"activations about {gib(one.activations)}"] if one.activations else []
        parts += [f"buffers {gib(one.buckets)} on a GPU"] if one.buckets else []
        parts += ["teacher"] if one.hosts_teacher else []
        lines.append(f"memory    {one.phase:16} {' + '.join(parts)}")
    choice = " (the first that fits)" if host == "auto" else ""
    of_hosts = ", ".join(f"{one} {gib(size)}" for one, size in sizes.items())
    lines.append(f"memory    teacher, per rank: {of_hosts}{choice}")
    return "".join(f"{line}\n" for line in lines)


def _no_cpu_offload(
    recipe: Recipe, teacher: Parameters, world_size: int, free_host: int, *, device_is_host: bool
) -> str | None:
    if device_is_host:
        return "the device is the host"
    own = frozen_bytes(teacher, host="zero3", precision=recipe.precision, world_size=world_size)
    return None if own <= USABLE * free_host else f"{gib(own)} do not fit into {gib(free_host)} of host memory"


def _with_head(recipe: Recipe, facts: ModelFacts) -> Parameters:
    return facts.parameters if isinstance(recipe.task, CausalLm) else facts.parameters.as_classifier()


def _trained_sizes(recipe: Recipe, side: str, model: Parameters) -> tuple[list[int], int]:
    """Sizes of a model's parameters that train, and how many do not."""
    sizes = model.sizes
    if side == "teacher" or not recipe.student.freeze_embeddings:
        return sizes, 0
    sizes.remove(model.embeddings)
    return sizes, model.embeddings


def _bank_sizes(plan: Plan, facts: ModelFacts, kind: str) -> list[int]:
    """Of the filters of one side, as :class:`ted_ds.numerics.filters.FilterBank` has them."""
    width, dim = facts.hidden_size, plan.filter_dim
    one = [*([width * width, width] if kind == "mlp" else []), dim * width, dim]
    return one * len(plan.layer_pairs)


def _probe_heads(
    recipe: Recipe, filters: Filters, model: Parameters, facts: ModelFacts, plan: Plan
) -> tuple[list[int], int]:
    """Sizes of Stage I's trained heads, and what the shared frozen one has (:mod:`ted_ds.models.heads`)."""
    dim, width, count = plan.filter_dim, facts.hidden_size, len(plan.layer_pairs)
    if not isinstance(recipe.task, CausalLm):
        outputs = recipe.task.num_outputs
        return [dim * dim, dim, dim * outputs, outputs] * count, 0
    if filters.lm_head == "new":
        return [dim * facts.vocab_size] * count, 0
    to_hidden = [dim * width, width] * count if dim != width else []
    return to_hidden, (model.lm_head or model.embeddings) + width


def _activations(recipe: Recipe, training: PhasePlan, facts: ModelFacts) -> int:
    row = recipe.task.sequence_length
    tokens = training.micro_batch_tokens or (training.micro_batch_size or 1) * row
    return activation_bytes(
        facts,
        tokens=tokens,
        row_tokens=row,
        precision=recipe.precision,
        keeps_scores=recipe.attention == "eager" or facts.model_type in EAGER_ATTENTION_TYPES,
        checkpointing=recipe.activation_checkpointing,
    )
