"""What the stages of a pipeline hold, do and send, by arithmetic: the table of ``ted-ds check``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.models.share import Share
from ted_ds.planning.frozen_blocks import is_lent, num_frozen_blocks
from ted_ds.planning.memory import ITEM_BYTES, activation_bytes, bucket_bytes, frozen_bytes, gib, trained_bytes
from ted_ds.planning.phase import DISTILL, Phase, phase_named, training_of
from ted_ds.planning.phase_memory import (
    bytes_of_sums,
    facts_of,
    filter_sizes,
    head_sizes,
    keeps_scores,
    trained_sizes,
    with_head,
)
from ted_ds.planning.pipeline_cut import Stage, border_of, shared_by_stages
from ted_ds.planning.plan import Plan

INTEGER_ROWS = 5
"""Of every token beside its states, as 32-bit integers: id, mask, whether it is kept, label, position if isolated."""


@dataclass(frozen=True)
class StageNeeds:
    """Of one stage, on each of its ranks, in bytes."""

    weights: int
    """That train, with gradients and optimizer state, and the frozen teacher's."""
    activations: int
    """Of all microbatches that are under way at once, and what they came with and leave behind; about."""
    buckets: int
    """DeepSpeed's buffers for communication, on a device that is not the host."""


def stage_needs(
    recipe: Recipe, plan: Plan, config: Mapping[str, Any], phase: str, *, num_replicas: int
) -> list[StageNeeds]:
    """What each stage of a phase needs. Both models must be known."""
    stages = plan.stages[phase]
    return [
        _needs(recipe, plan, config, phase_named(phase), index, stages, num_replicas) for index in range(len(stages))
    ]


def _needs(
    recipe: Recipe,
    plan: Plan,
    config: Mapping[str, Any],
    phase: Phase,
    index: int,
    stages: Sequence[Stage],
    num_replicas: int,
) -> StageNeeds:
    stage, training = stages[index], training_of(recipe, phase)
    sizes: list[int] = []
    activations, frozen, num_frozen = 0, 0, 0
    under_way = min(len(stages) - index, num_microbatches(training, num_replicas))
    borders = [border for border in (index - 1, index) if 0 <= border < len(stages) - 1]
    for side in sorted(stage.runs):
        share = stage.shares[side]
        facts = facts_of(plan, side)
        parameters = with_head(recipe, facts).of_share(share, predicts_tokens=recipe.task.has_lm_head)
        if side in phase.frozen:
            host = "int8" if side == "teacher" and recipe.teacher.host == "int8" else "replica"
            frozen += frozen_bytes(parameters, host=host, precision=recipe.precision, world_size=1)
            continue
        is_tied = not with_head(recipe, facts).lm_head
        sizes, num_frozen = trained_sizes(
            recipe,
            side,
            parameters,
            blocks_before=share.start,
            frozen_head=parameters.lm_head if is_tied else 0,
        )
        first = max(share.start, num_frozen_blocks(recipe, side))
        here = replace(facts, num_blocks=max(share.stop - first, 0))
        row = recipe.task.sequence_length
        activations = activation_bytes(
            here,
            tokens=micro_tokens(recipe, training),
            row_tokens=row,
            precision=recipe.precision,
            keeps_scores=keeps_scores(recipe, facts),
            checkpointing=recipe.activation_checkpointing,
            under_way=under_way,
        )
    if stage.places:
        per_pair = len(stage.places)
        for side in phase.frozen if phase.learns_filters else ("student",):
            sizes += filter_sizes(recipe, plan, side) * per_pair
            if phase.learns_filters and recipe.filters is not None:
                heads, shared = head_sizes(recipe, plan, side, recipe.filters)
                sizes += heads * per_pair
                num_frozen += shared
        if phase is DISTILL and recipe.distill.needs.filters:
            frozen += sum(filter_sizes(recipe, plan, "teacher")) * per_pair * ITEM_BYTES[recipe.precision]
    trained = trained_bytes(
        sizes or [1], config=config, precision=recipe.precision, world_size=num_replicas, num_frozen=num_frozen
    )
    activations += under_way * sum(_forward_bytes(recipe, plan, phase, border) for border in borders)
    if phase.learns_filters:  # before, all stages solve filters of whole models, in shards
        activations = max(activations, bytes_of_sums(recipe, plan, phase))
    buckets = bucket_bytes(config, recipe.precision, in_pipeline=True)
    return StageNeeds(trained.total + frozen, activations, buckets)


def num_microbatches(training: PhasePlan, num_replicas: int) -> int:
    """Of a step; at least one for each example of a token budget's would do."""
    return max(training.global_batch_size // ((training.micro_batch_size or 1) * num_replicas), 1)


def micro_tokens(recipe: Recipe, training: PhasePlan) -> int:
    """Of the largest microbatch, padding included."""
    rows = (training.micro_batch_size or 1) * recipe.task.rows_per_example
    return training.micro_batch_tokens or rows * recipe.task.sequence_length


def sent_bytes(recipe: Recipe, plan: Plan, phase: str, border: int) -> int:
    """What crosses a border for each microbatch, both ways: states there, the gradient back."""
    which = phase_named(phase)
    forward = _forward_bytes(recipe, plan, which, border)
    return forward + (_state_bytes(recipe, plan, which, which.trains) if which.trains is not None else 0)


def _forward_bytes(recipe: Recipe, plan: Plan, phase: Phase, border: int) -> int:
    passing = [phase.trains] if phase.trains is not None else []
    passing += [side for side in phase.frozen if _is_sent(recipe, plan, phase, border, side)]
    integers = 4 * INTEGER_ROWS * micro_tokens(recipe, training_of(recipe, phase))
    return integers + sum(_state_bytes(recipe, plan, phase, side) for side in passing)


def _is_sent(recipe: Recipe, plan: Plan, phase: Phase, border: int, side: str) -> bool:
    """Whether a frozen model's state crosses a border: not where the student's is the teacher's, too."""
    stages = plan.stages[phase.name]
    behind = stages[border + 1]
    if side not in behind.runs or phase is not DISTILL:
        return side in behind.runs
    shared = shared_by_stages(recipe, facts_of(plan, "teacher"), facts_of(plan, "student"), stages)
    return not is_lent(shared, border_of(behind))


def _state_bytes(recipe: Recipe, plan: Plan, phase: Phase, side: str) -> int:
    tokens = micro_tokens(recipe, training_of(recipe, phase))
    return ITEM_BYTES[recipe.precision] * facts_of(plan, side).hidden_size * tokens


def describe_stages(recipe: Recipe, plan: Plan, config: Mapping[str, Any], *, num_ranks: int) -> str:
    """The stages of every phase that trains, in words, for ``ted-ds check``."""
    num_stages = recipe.pipeline.stages
    num_replicas = max(num_ranks // num_stages, 1)
    pipelines = counted(num_replicas, "pipeline")
    lines = []
    for phase, stages in plan.stages.items():
        training = training_of(recipe, phase_named(phase))
        count = num_microbatches(training, num_replicas)
        about = "" if training.micro_batch_size is not None else "up to "
        mean = sum(stage.cost for stage in stages) / num_stages
        sent = max(sent_bytes(recipe, plan, phase, border) for border in range(num_stages - 1))
        lines.append(
            f"stages    {phase:16} {pipelines} of {num_stages} stages, {about}{counted(count, 'microbatch')}: a stage "
            "waits "
            f"{bubble(num_stages, count):.1%} of a step, slowest stage {max(s.cost for s in stages) / mean:.2f} x the "
            f"mean, {gib(sent)} across a border per microbatch"
        )
        needs = stage_needs(recipe, plan, config, phase, num_replicas=num_replicas)
        for index, (stage, need) in enumerate(zip(stages, needs, strict=True)):
            held = [f"{side} {_in_words(share)}" for side, share in stage.shares.items() if side in stage.runs]
            pairs = " ".join(f"{s}<-{t}" for s, t in (plan.layer_pairs[place] for place in stage.places))
            work = stage.cost / (mean * num_stages)
            lines.append(
                f"  stage {index}  {'; '.join([*held, *([f'pairs {pairs}'] if pairs else [])])}; {work:.0%} of the "
                f"work; weights {gib(need.weights)}"
                f" + activations about {gib(need.activations)}"
                + (f" + buffers {gib(need.buckets)} on a GPU" if need.buckets else "")
            )
    return "".join(f"{line}\n" for line in lines)


def bubble(num_stages: int, num_micro: int) -> float:
    """The share of a step in which a stage waits, if all take as long (Huang et al. 2019, arXiv:1811.06965)."""
    return (num_stages - 1) / (num_micro + num_stages - 1)


def _in_words(share: Share) -> str:
    parts = ["embeddings"] if share.has_embeddings else []
    if share.stop > share.start:
        parts.append(
            f"blocks {share.start + 1}-{share.stop}" if share.stop > share.start + 1 else f"block {share.stop}"
        )
    return " + ".join([*parts, *(["output"] if share.has_output else [])]) or "passing through"
