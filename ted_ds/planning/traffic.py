"""What a step sends over the network and computes, by arithmetic: ``ted-ds check --link-gbit``.

What DeepSpeed's engines exchange for each parameter is written down as it was counted:
``tests/distributed/test_communication.py`` holds this against the collectives of real engines. Rings are assumed: of
``size`` bytes each rank sends ``(W - 1) / W`` in an all-gather or a reduce-scatter, and twice that in an all-reduce
(Thakur, Rabenseifner, Gropp 2005, doi:10.1177/1094342005051521).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.config.schema import Recipe
from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.memory import ITEM_BYTES, SHARDED_HOSTS, gib
from ted_ds.planning.phase import phase_named, training_of
from ted_ds.planning.phase_memory import facts_of, phase_memories, with_head
from ted_ds.planning.pipeline_cut import operations_per_token
from ted_ds.planning.plan import Plan

REUSED = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered from forward to backward (DeepSpeed's default ``stage3_max_live_parameters``
and ``stage3_max_reuse_distance``): larger models are gathered twice."""


@dataclass(frozen=True)
class Link:
    """What ranks are assumed to have."""

    gbit: float
    """Of each rank to other hosts, in Gbit/s."""
    tflops: float
    """What each rank computes, in 10^12 operations a second: about 40 % of what a GPU's data sheet says."""


@dataclass(frozen=True)
class Traffic:
    """A training step of a phase, on each rank."""

    phase: str
    sent: float
    """Bytes."""
    operations: float

    def seconds(self, link: Link) -> tuple[float, float]:
        """To compute, and to send."""
        return self.operations / (link.tflops * 1e12), self.sent / (link.gbit * 1e9 / 8)


def sent_by_engine(num_trained: int, *, stage: int, item_bytes: int, num_ranks: int, num_micro: int) -> float:
    """Bytes that each rank sends in a step of ``num_micro`` microbatches to train so many parameters."""
    size = num_trained * item_bytes * (num_ranks - 1) / num_ranks
    if stage == 0:
        return 2 * size
    if stage == 1:
        return 2 * size + size  # gradients once a step, and the new weights
    if stage == 2:
        return 2 * size * num_micro + size
    gathers = 1 if num_trained <= REUSED else 2
    return num_micro * (gathers + 1) * size


def phase_traffic(recipe: Recipe, plan: Plan, config: Mapping[str, Any], *, num_ranks: int, host: str) -> list[Traffic]:
    """The steps of the phases that train, in order; none while a model is not fetched yet, or on a pipeline."""
    if plan.teacher is None or plan.student is None or recipe.pipeline.stages > 1:
        return []
    item, found = ITEM_BYTES[recipe.precision], []
    for one in phase_memories(recipe, plan, config, world_size=num_ranks, host=host):
        phase = phase_named(one.phase)
        training = training_of(recipe, phase)
        row, share = recipe.task.sequence_length, training.global_batch_size / num_ranks
        per_micro = training.micro_batch_size or max((training.micro_batch_tokens or 0) // row, 1)
        num_micro = max(round(share / per_micro), 1)
        sent = sent_by_engine(
            one.num_trained, stage=zero_stage(config), item_bytes=item, num_ranks=num_ranks, num_micro=num_micro
        )
        for side in phase.frozen if host in SHARDED_HOSTS else ():
            if side == "teacher" and not one.hosts_teacher:  # a cache speaks for it
                continue
            sent += num_micro * with_head(recipe, facts_of(plan, side)).total * item * (num_ranks - 1) / num_ranks
        facts = {side: facts_of(plan, side) for side in ("student", "teacher")}
        per_token = operations_per_token(recipe, facts, plan.layer_pairs, plan.filter_dim, phase)
        found.append(Traffic(one.phase, sent, per_token * share * row * recipe.task.rows_per_example))
    return found


def describe_traffic(recipe: Recipe, plan: Plan, link: Link, *, num_ranks: int) -> str:
    """The same in words, with the time it takes if nothing overlaps and if everything does."""
    config = deepspeed_json_of(recipe, plan)
    host = "replica" if recipe.teacher.host == "auto" else recipe.teacher.host
    lines = []
    for one in phase_traffic(recipe, plan, config, num_ranks=num_ranks, host=host):
        work, send = one.seconds(link)
        lowest, highest = work / (work + send), work / max(work, send)
        lines.append(
            f"network   {one.phase:16} computed: each rank sends {gib(int(one.sent))} a step, {send:.3g} s at "
            f"{link.gbit:g} Gbit/s; work {work:.3g} s at {link.tflops:g} TFLOP/s; {lowest:.0%} of a step is work where "
            f"nothing overlaps, {highest:.0%} where all does"
        )
    nothing = "network   not computed on a pipeline (what crosses its borders is above), nor before models are fetched"
    return "".join(f"{line}\n" for line in lines or [nothing])
