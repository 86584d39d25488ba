"""What each phase of a run needs on a rank, by the arithmetic of :mod:`ted_ds.planning.memory`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ted_ds.config.layers import Filters
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.models.family import ENCODER
from ted_ds.models.files import ModelFacts
from ted_ds.models.parameters import Parameters
from ted_ds.numerics.layer_map import stack_of
from ted_ds.planning.adapters import adapted_sizes, teaches_itself
from ted_ds.planning.frozen_blocks import frozen_sizes, num_frozen_blocks
from ted_ds.planning.heal_cost import heal_cost
from ted_ds.planning.memory import (
    ITEM_BYTES,
    SHARDED_HOSTS,
    Trained,
    activation_bytes,
    bucket_bytes,
    frozen_bytes,
    on_device,
    trained_bytes,
)
from ted_ds.planning.phase import DISTILL, HEAL_STUDENT, Phase, phases_of, training_of
from ted_ds.planning.plan import Plan
from ted_ds.planning.ridge_filters import are_solved, reader_of, solves_towards_teacher

SUM_ITEM_BYTES = 8
"""Filters are solved in fp64."""


@dataclass(frozen=True)
class PhaseMemory:
    """What a phase needs on the rank that needs most, but for the teacher's weights."""

    phase: str
    num_trained: int
    """Parameters."""
    trained: Trained
    activations: int
    """About."""
    hosts_teacher: bool
    frozen: int
    """Other weights that do not train: a frozen student in Stage I, the teacher's filters in Stage II."""
    buckets: int
    """DeepSpeed's buffers for communication, on a device that is not the host."""
    sums: int = 0
    """What is solved without training."""
    on_host: int = 0
    """States that wait in host memory."""
    sums_before: int = 0
    """By which filters are solved, before anything trains."""
    repeated: int = 0
    """A step's whole gradient, where steps are computed a second time."""

    def total(self, config: Mapping[str, Any], *, device_is_host: bool) -> int:
        """All of it that is on the device."""
        trained = self.trained if device_is_host else on_device(self.trained, config)
        training = max(trained.total + self.activations + self.repeated, self.sums_before)
        return training + self.frozen + self.sums + (self.on_host if device_is_host else self.buckets)


def phase_memories(
    recipe: Recipe, plan: Plan, config: Mapping[str, Any], *, world_size: int, host: str = "replica"
) -> list[PhaseMemory]:
    """What the phases that train or heal need, in order; none while a model is not fetched yet.

    Args:
        recipe: The recipe.
        plan: Its plan.
        config: The DeepSpeed JSON.
        world_size: Ranks.
        host: Of the teacher: a frozen student is sharded where it is.
    """
    if plan.teacher is None or plan.student is None:
        return []
    pair = _Pair(recipe, plan, config, world_size, {"teacher": plan.teacher, "student": plan.student})
    return [
        pair.healing(host) if phase is HEAL_STUDENT else pair.training(phase, host)
        for phase in phases_of(recipe)
        if phase.plan_path is not None or phase is HEAL_STUDENT
    ]


@dataclass(frozen=True)
class _Pair:
    """Both models in a run."""

    recipe: Recipe
    plan: Plan
    config: Mapping[str, Any]
    world_size: int
    facts: Mapping[str, ModelFacts]

    def training(self, phase: Phase, host: str) -> PhaseMemory:
        """Of any phase that trains."""
        if phase is DISTILL:
            return self._distilling()
        if phase.trains is None:
            return self._learning_filters(phase, host)
        return self._finetuning(phase, phase.trains)

    def healing(self, host: str) -> PhaseMemory:
        """Of a student that is healed; what a microbatch takes on its way through a block is left out."""
        cost = heal_cost(self.recipe, self.facts["teacher"], self.facts["student"], num_ranks=self.world_size)
        nothing = Trained(0, 0, 0)
        own = self._frozen_student(host)
        return PhaseMemory(
            HEAL_STUDENT.name, 0, nothing, 0, True, own, 0, sums=cost.sums_bytes, on_host=cost.states_bytes
        )

    def _frozen_student(self, host: str) -> int:
        """Of a frozen student's weights, which are sharded where the teacher's are."""
        return frozen_bytes(
            self._parameters("student"),
            host="zero3" if host in SHARDED_HOSTS else "replica",
            precision=self.recipe.precision,
            world_size=self.world_size,
        )

    def _finetuning(self, phase: Phase, side: str) -> PhaseMemory:
        """Stage 0."""
        sizes, num_frozen = self._trained_sizes(side)
        activations = self._activations(phase, side)
        return self._phase(phase.name, sizes, num_frozen, activations=activations)

    def _learning_filters(self, phase: Phase, host: str) -> PhaseMemory:
        """Stage I; what its small heads keep for their backward pass is left out."""
        filters, sides = self.recipe.filters, phase.frozen
        assert filters is not None
        of_heads = {side: self._heads(side, filters) for side in sides}
        frozen = 0
        if "student" in sides:
            frozen = self._frozen_student(host)
        sizes = [size for side, (heads, _) in of_heads.items() for size in (*self._filters(side), *heads)]
        learned = self._phase(
            phase.name,
            [] if training_of(self.recipe, phase).max_steps == 0 else sizes,
            sum(num_frozen for _, num_frozen in of_heads.values()),
            hosts_teacher="teacher" in sides or solves_towards_teacher(self.recipe, phase),
            frozen=frozen,
        )
        return replace(learned, sums_before=bytes_of_sums(self.recipe, self.plan, phase))

    def _distilling(self) -> PhaseMemory:
        """Stage II."""
        sizes, num_frozen = self._trained_sizes("student")
        needs = self.recipe.distill.needs
        return self._phase(
            DISTILL.name,
            [*sizes, *self._filters("student")],
            num_frozen,
            activations=self._activations(DISTILL, "student"),
            hosts_teacher=needs.teacher and self.recipe.teacher.cache is None and not teaches_itself(self.recipe),
            frozen=sum(self._filters("teacher")) * ITEM_BYTES[self.recipe.precision] if needs.filters else 0,
        )

    def _phase(
        self,
        name: str,
        sizes: list[int],
        num_frozen: int,
        *,
        activations: int = 0,
        hosts_teacher: bool = False,
        frozen: int = 0,
    ) -> PhaseMemory:
        trained = trained_bytes(
            sizes,
            config=self.config,
            precision=self.recipe.precision,
            world_size=self.world_size,
            num_frozen=num_frozen,
        )
        buckets = bucket_bytes(self.config, self.recipe.precision)
        repeated = sum(sizes) * ITEM_BYTES[self.recipe.precision] if self.recipe.replay.every_steps else 0
        return PhaseMemory(name, sum(sizes), trained, activations, hosts_teacher, frozen, buckets, repeated=repeated)

    def _parameters(self, side: str) -> Parameters:
        return with_head(self.recipe, self.facts[side])

    def _trained_sizes(self, side: str) -> tuple[list[int], int]:
        return trained_sizes(self.recipe, side, self._parameters(side))

    def _activations(self, phase: Phase, side: str) -> int:
        """Of the blocks that train."""
        facts = self.facts[side]
        trained = replace(facts, num_blocks=facts.num_blocks - num_frozen_blocks(self.recipe, side))
        return _activations(self.recipe, training_of(self.recipe, phase), trained)

    def _filters(self, side: str) -> list[int]:
        return filter_sizes(self.recipe, self.plan, side) * len(self.plan.layer_pairs)

    def _heads(self, side: str, filters: Filters) -> tuple[list[int], int]:
        of_one, num_frozen = head_sizes(self.recipe, self.plan, side, filters)
        facts, dim = facts_of(self.plan, side), self.plan.filter_dim
        read = sum(stack_of(layer) == ENCODER for layer in self.plan.layers(side))
        readers = [dim * facts.hidden_size, dim] * read
        embeddings = facts.parameters.embeddings if read else 0
        return of_one * len(self.plan.layer_pairs) + readers, num_frozen + embeddings


def trained_sizes(
    recipe: Recipe, side: str, model: Parameters, *, blocks_before: int = 0, frozen_head: int = 0
) -> tuple[list[int], int]:
    """Sizes of a model's parameters that train, and how many do not.

    In a pipeline, of a share with so many ``blocks_before`` it; ``frozen_head`` are those of a head that is the
    embeddings, where these are elsewhere.
    """
    sizes = model.sizes
    if side == "student" and recipe.student.lora is not None:
        return adapted_sizes(recipe, model)
    if side == "student" and recipe.student.freeze_blocks is not None:
        return frozen_sizes(recipe, model, blocks_before=blocks_before, frozen_head=frozen_head)
    if side == "teacher" or not recipe.student.freeze_embeddings:
        return sizes, 0
    frozen = [size for size in (model.embeddings, frozen_head) if size]
    for size in frozen:
        sizes.remove(size)
    return sizes, sum(frozen)


def filter_sizes(recipe: Recipe, plan: Plan, side: str) -> list[int]:
    """Of the parameters of one filter of a side (:class:`ted_ds.numerics.filters.Filter`)."""
    filters, width, dim = recipe.filters, facts_of(plan, side).hidden_size, plan.filter_dim
    is_mlp = recipe.distill.needs.filters and filters is not None and filters.kind == "mlp"
    return [*([width * width, width] if is_mlp else []), dim * width, dim]


def head_sizes(recipe: Recipe, plan: Plan, side: str, filters: Filters) -> tuple[list[int], int]:
    """Sizes of what one of Stage I's heads trains, and what the frozen one has that they share.

    See :mod:`ted_ds.models.heads`.
    """
    facts, task = facts_of(plan, reader_of(recipe, side)), recipe.task
    model, dim, width = with_head(recipe, facts), plan.filter_dim, facts.hidden_size
    if filters.are_solved and not task.has_lm_head:  # a model's own, with what stands before it
        return [], sum(math.prod(shape) for shape in (*model.label_heads, *model.before_lm_head))
    if not task.has_lm_head:
        return task.probe_sizes(dim), 0
    if filters.lm_head == "new":
        return [dim * facts.vocab_size], 0
    before = sum(map(math.prod, model.before_lm_head)) or width  # or the final norm, which is among others
    return [dim * width, width] if dim != width else [], (model.lm_head or model.embeddings) + before


def bytes_of_sums(recipe: Recipe, plan: Plan, phase: Phase) -> int:
    """What the sums take by which a phase of Stage I solves the filters of one side, then those of the other.

    Of each filter, those over tokens to fit and those over tokens to judge by (:mod:`ted_ds.assembly.solved_filters`).
    """
    if not are_solved(recipe):
        return 0
    widths = [facts_of(plan, side).hidden_size + 1 for side in phase.frozen]  # with a bias
    return max(2 * width * (width + plan.filter_dim) for width in widths) * len(plan.layer_pairs) * SUM_ITEM_BYTES


def facts_of(plan: Plan, side: str) -> ModelFacts:
    """A model's facts, which must be known."""
    facts = plan.teacher if side == "teacher" else plan.student
    assert facts is not None
    return facts


def with_head(recipe: Recipe, facts: ModelFacts) -> Parameters:
    """A model's parameters as the task uses it: a classifier goes without the LM head."""
    return facts.as_language_model if recipe.task.has_lm_head else facts.as_classifier


def _activations(recipe: Recipe, training: PhasePlan, facts: ModelFacts) -> int:
    row = recipe.task.sequence_length
    tokens = training.micro_batch_tokens or (training.micro_batch_size or 1) * row * recipe.task.rows_per_example
    return activation_bytes(
        facts,
        tokens=tokens,
        row_tokens=row,
        precision=recipe.precision,
        keeps_scores=keeps_scores(recipe, facts),
        checkpointing=recipe.activation_checkpointing,
    )


def keeps_scores(recipe: Recipe, facts: ModelFacts) -> bool:
    """Whether a model's attention keeps its scores for the backward pass."""
    return recipe.attention == "eager" or facts.family.attention == ("eager",)
