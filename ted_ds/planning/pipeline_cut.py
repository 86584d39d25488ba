"""Which pipeline stage holds which blocks: cut where the slowest stage is fastest, and where the layer map allows it.

A layer-wise loss is computed where both its layers are, so a border between stages must not separate a pair: the
teacher's blocks up to the last partner of a student block before the border lie before it too, and no partner of a
later block does. Where the layer map leaves a choice (blocks without a partner, layers matched sparsely), either side
may take them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError
from ted_ds.models.family import DECODER, ENCODER
from ted_ds.models.files import ModelFacts
from ted_ds.models.share import Share
from ted_ds.numerics.layer_map import Layer, LayerPairs, number_of, stack_of
from ted_ds.planning.frozen_blocks import SharedBlocks, num_frozen_blocks, shared_blocks, within_stages
from ted_ds.planning.phase import DISTILL, Phase, phases_of

FORWARD, FIXED, LEARN, RECOMPUTED = 1, 2, 3, 4
"""Passes through a matrix: forward; with the gradient of its input alone; with those of input and weights; with
activations computed once more."""
MOST_CHOICES = 33
"""Of where to cut the teacher, for one cut of the student: where no layers are matched, any would do."""

MOST_SHARED = 8
"""Numbers of blocks that both models run once, beside none, with which a cut is looked for."""


@dataclass(frozen=True)
class Stage:
    """What one stage of a phase holds."""

    shares: Mapping[str, Share]
    """Of the ``student`` and the ``teacher``; without blocks where there are none for it."""
    runs: frozenset[str]
    """The sides whose states pass it: of a teacher that no later stage needs, there are none."""
    places: tuple[int, ...]
    """In the layer map: whose filters and losses are here."""
    cost: float
    """Operations (multiply-adds counted twice) per token of a training step."""


def _in_one_row(layer: Layer, facts: ModelFacts) -> int:
    """A layer's number where the blocks of both stacks are counted through."""
    return number_of(layer) + (facts.blocks_of_stacks[ENCODER] if stack_of(layer) == DECODER else 0)


def whole_stage(facts: Mapping[str, ModelFacts], num_pairs: int) -> Stage:
    """Everything on one stage: no pipeline."""
    shares = {side: Share.whole(one.num_blocks) for side, one in facts.items()}
    return Stage(shares, frozenset(shares), tuple(range(num_pairs)), 0.0)


def plan_stages(
    recipe: Recipe, facts: Mapping[str, ModelFacts], pairs: LayerPairs, filter_dim: int
) -> dict[str, tuple[Stage, ...]]:
    """The stages of every phase that trains, from input to output.

    Raises:
        ConfigError: A phase cannot be cut into so many.
    """
    num_stages = recipe.pipeline.stages
    stages: dict[str, tuple[Stage, ...]] = {}
    for phase in phases_of(recipe):
        if phase.plan_path is None:
            continue
        if num_stages == 1:
            here = {side: facts[side] for side in facts if side in _sides(recipe, phase)}
            stages[phase.name] = (whole_stage(here, len(pairs)),)
        else:
            stages[phase.name] = _cut(_Cutter(recipe, facts, pairs, filter_dim, phase), num_stages)
    return stages


def _cut(cutter: _Cutter, num_stages: int) -> tuple[Stage, ...]:
    """The best cut, whether it lets all blocks be run once for both models that could be, or fewer.

    Raises:
        ConfigError: There is none.
    """
    found: list[tuple[Stage, ...]] = []
    most = cutter.num_shared
    for number in sorted({int(one) for one in np.linspace(0, most, min(most, MOST_SHARED) + 1).round()}, reverse=True):
        cutter.num_shared = number
        stages = cutter.cut(num_stages)
        found += [] if stages is None else [stages]
    if not found:
        raise ConfigError(cutter.refusal(num_stages))
    return min(found, key=lambda stages: max(stage.cost for stage in stages))  # of equals that which shares most


def shared_by_stages(recipe: Recipe, teacher: ModelFacts, student: ModelFacts, stages: Sequence[Stage]) -> SharedBlocks:
    """The first blocks that both models run once in Stage II, as far as files, recipe and its stages allow it."""
    return within_stages(shared_blocks(recipe, teacher, student), borders_of(stages))


def borders_of(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """Those of Stage II behind which something of the teacher runs; see :func:`border_of`."""
    return [border_of(stage) for stage in stages[1:] if "teacher" in stage.runs]


def border_of(stage: Stage) -> tuple[int, int]:
    """Behind how many blocks of the student, and of the teacher, a stage of Stage II begins."""
    return stage.shares["student"].start, stage.shares["teacher"].start


def operations_per_token(
    recipe: Recipe, facts: Mapping[str, ModelFacts], pairs: LayerPairs, filter_dim: int, phase: Phase
) -> float:
    """Operations (multiply-adds counted twice) per token of a phase's training step, over all stages."""
    cutter, num_stages = _Cutter(recipe, facts, pairs, filter_dim, phase), recipe.pipeline.stages
    if num_stages == 1 or not cutter.num_shared:
        return cutter.whole_cost()
    return sum(stage.cost for stage in _cut(cutter, num_stages))


def forward_operations(recipe: Recipe, facts: ModelFacts) -> float:
    """Operations (multiply-adds counted twice) per token of a forward pass through a model, with its LM head."""
    head = _of_lm_head(recipe, facts) if recipe.task.has_lm_head else 0.0
    return _before_each_block(recipe, facts)[-1] + head


def _before_each_block(recipe: Recipe, facts: ModelFacts) -> list[float]:
    """Of a forward pass through the blocks before each block, and through all of them."""
    attention = 2 * facts.hidden_size * recipe.task.sequence_length  # scores, and what they weigh
    cost = [0.0]
    for block in facts.parameters.of_layers:
        matrices = sum(math.prod(shape) for shape in block if len(shape) == 2)
        matrices += sum(facts.num_chosen_experts * math.prod(shape[1:]) for shape in block if len(shape) == 3)
        cost.append(cost[-1] + 2.0 * (matrices + attention))
    return cost


def _of_lm_head(recipe: Recipe, facts: ModelFacts) -> float:
    """And what stands before it; the logits of tokens that are not predicted are not computed."""
    model = facts.as_language_model
    before = sum(math.prod(shape) for shape in model.before_lm_head if len(shape) == 2)
    return 2.0 * (recipe.task.predicted_share * (model.lm_head or model.embeddings) + before)


def _sides(recipe: Recipe, phase: Phase) -> Sequence[str]:
    """The models in a phase, the one that sets its pace first."""
    return ("student",) if phase is DISTILL and not recipe.distill.needs.teacher else phase.sides


class _Cutter:
    """Cuts the models of one phase."""

    def __init__(
        self,
        recipe: Recipe,
        facts: Mapping[str, ModelFacts],
        pairs: LayerPairs,
        filter_dim: int,
        phase: Phase,
    ) -> None:
        sides = _sides(recipe, phase)
        self._recipe, self._phase, self._sides, self._dim = recipe, phase, sides, filter_dim
        self._facts = facts
        self._own = facts[sides[0]]
        self._is_filters = phase.learns_filters
        self._other = facts[sides[1]] if len(sides) > 1 else None
        self._causal = recipe.task.has_lm_head
        # the layers of each place on the side that sets the pace, and on the other
        column = 1 if sides[0] == "teacher" else 0
        with_pairs = self._is_filters or self._other is not None
        own = [_in_one_row(pair[column], self._own) for pair in pairs] if with_pairs else []
        self._own_layers = own
        self._other_layers = [] if self._other is None else [_in_one_row(pair[1], self._other) for pair in pairs]
        # what no matched layer needs does not run where there are no predictions
        self._own_end = max(self._own_layers) if self._is_filters else self._own.num_blocks
        needs = recipe.distill.needs
        whole = needs.predictions or needs.relations
        self._predicts = self._other is not None and not self._is_filters and whole
        self._other_end = 0
        if self._other is not None:
            self._other_end = self._other.num_blocks if self._predicts else max(self._other_layers, default=0)
        trained = FORWARD if self._is_filters else RECOMPUTED if recipe.activation_checkpointing else LEARN
        own_blocks = _before_each_block(recipe, self._own)
        self._frozen = 0 if self._is_filters else num_frozen_blocks(recipe, sides[0])
        self._own_blocks = [
            trained * cost - (trained - FORWARD) * own_blocks[min(index, self._frozen)]
            for index, cost in enumerate(own_blocks)
        ]
        self._other_blocks = [] if self._other is None else _before_each_block(recipe, self._other)
        self.num_shared = 0
        """Blocks that both models run once: on one stage each."""
        if self._frozen and self._other is not None:
            self.num_shared = shared_blocks(recipe, facts["teacher"], facts["student"]).number

    def cut(self, num_stages: int) -> tuple[Stage, ...] | None:
        """The best cut; None where there is none."""
        if self._is_filters:  # each stage runs a block, also where the layer map ends before
            self._own_end = max(self._own_end, min(num_stages, self._own.num_blocks))
        stations = self._stations()
        costs = np.array([self._cost_before(*station) for station in stations])
        chosen = _best_path(stations, costs, num_stages)
        if chosen is None:
            return None
        path = [stations[index] for index in chosen]
        return tuple(
            self._stage(path[index], path[index + 1], is_last=index == num_stages - 1) for index in range(num_stages)
        )

    def whole_cost(self) -> float:
        """Operations per token of everything."""
        return self._cost_before(self._own_end, self._other_end)

    def _stations(self) -> list[tuple[int, int]]:
        """Where a border may be, as blocks of each model before it; the first is the start and the last the end."""
        # a stage of nothing but the head makes sense where that is work
        last = self._own_end if self._causal and not self._is_filters else self._own_end - 1
        found = [(0, 0)]
        for own in range(1, last + 1):
            lowest, highest = self._range(own)
            count = min(highest - lowest + 1, MOST_CHOICES)
            if count > 0:
                found += [(own, int(other)) for other in np.linspace(lowest, highest, count).round()]
        return [*found, (self._own_end, self._other_end)]

    def _range(self, own: int) -> tuple[int, int]:
        """The fewest and the most teacher blocks before a border behind this student block; none if that is less."""
        pairs = list(zip(self._own_layers, self._other_layers, strict=False))
        lowest = max((other for layer, other in pairs if layer <= own), default=0)
        highest = min((other for layer, other in pairs if layer > own), default=self._other_end)
        together = min(own, self.num_shared, self._other_end)
        return max(lowest, together), min(highest, together) if own < self.num_shared else highest

    def refusal(self, num_stages: int) -> str:
        """Why there is no cut into so many."""
        crossing = [
            f"{a[0]}<-{a[1]} and {b[0]}<-{b[1]}"
            for a in zip(self._own_layers, self._other_layers, strict=False)
            for b in zip(self._own_layers, self._other_layers, strict=False)
            if a[0] < b[0] and a[1] > b[1]
        ]
        most = len({station[0] for station in self._stations()[1:-1]}) + 1
        reason = (
            f"the pairs {crossing[0]} cross, and a stage must hold both layers of a pair"
            if crossing
            else f"{self._own_end} blocks of the {self._sides[0]} take part"
        )
        return (
            f"pipeline.stages: {num_stages}: {self._phase.name} can be cut into at most {most}: {reason}; use "
            "fewer stages"
            + (", or a layer map in which later student layers have later teacher layers" if crossing else "")
        )

    def _stage(self, before: tuple[int, int], behind: tuple[int, int], *, is_last: bool) -> Stage:
        is_first = before == (0, 0)
        has_output = is_last and not self._is_filters
        shares = {self._sides[0]: Share(before[0], behind[0], is_first, has_output)}
        runs = {self._sides[0]}
        if self._other is not None:
            other = Share(before[1], behind[1], is_first, is_last and self._predicts)
            needed = other.stop < self._other_end or before[1] < self._other_end or other.has_output
            # its last state may still be matched further on
            matched = any(
                layer == before[1] and own > before[0]
                for own, layer in zip(self._own_layers, self._other_layers, strict=True)
            )
            shares[self._sides[1]] = other
            if needed or matched or is_first:
                runs.add(self._sides[1])
        places = tuple(
            place
            for place, layer in enumerate(self._own_layers)
            if before[0] < layer <= behind[0] or (is_first and layer == 0)
        )
        cost = self._cost_before(*behind) - self._cost_before(*before)
        return Stage(shares, frozenset(runs), places, cost)

    # --- costs ------------------------------------------------------------------------------------------------------

    def _cost_before(self, own: int, other: int) -> float:
        """Operations per token of everything before a border; the heads count where everything is before it."""
        cost = self._own_blocks[own]
        if self._other is not None:
            cost += self._other_blocks[other] - self._other_blocks[min(other, self.num_shared)]
        cost += sum(self._of_pair() for layer in self._own_layers if layer <= own and own > 0)
        if (own, other) == (self._own_end, self._other_end):
            cost += self._of_heads()
        return cost

    def _of_heads(self) -> float:
        if not self._causal or self._is_filters:
            return 0.0
        is_tied = not self._own.as_language_model.lm_head
        cost = (FIXED if self._frozen and is_tied else LEARN) * _of_lm_head(self._recipe, self._own)
        if self._other is not None and self._predicts:
            cost += FORWARD * _of_lm_head(self._recipe, self._other)
        return cost

    def _of_pair(self) -> float:
        """A pair's filters, and in Stage I the heads on them."""
        if self._is_filters:
            return sum(self._of_probe(self._facts[side]) for side in self._sides)
        cost = LEARN * self._of_filter(self._own)
        return cost if self._other is None else cost + FORWARD * self._of_filter(self._other)

    def _of_probe(self, facts: ModelFacts) -> float:
        learn_without_input = 2
        cost = learn_without_input * self._of_filter(facts)
        if self._causal and self._recipe.filters is not None:
            cost += (LEARN if self._recipe.filters.lm_head == "new" else 2) * _of_lm_head(self._recipe, facts)
        return cost

    def _of_filter(self, facts: ModelFacts) -> float:
        return 2.0 * facts.hidden_size * self._dim


def _best_path(stations: Sequence[tuple[int, int]], costs: np.ndarray, num_stages: int) -> list[int] | None:
    """The stations from the first to the last, with the smallest largest cost between two; None if there are too few.

    Costs before a station grow with it, so the cost between two is a difference.
    """
    own, other = (np.array(column) for column in zip(*stations, strict=True))
    end = len(stations) - 1
    follows = (own[:, None] < own[None, :]) & (other[:, None] <= other[None, :])
    follows[:, end] = other <= other[end]
    follows[end, :] = False
    between = np.where(follows, costs[None, :] - costs[:, None], np.inf)
    best = np.full(len(stations), np.inf)
    best[0] = 0.0
    steps: list[np.ndarray] = []
    for _ in range(num_stages):
        slowest = np.maximum(best[:, None], between)
        steps.append(slowest.argmin(axis=0))
        best = slowest.min(axis=0)
    if not np.isfinite(best[end]):
        return None
    path = [end]
    for step in reversed(steps):
        path.append(int(step[path[-1]]))
    return path[::-1]
