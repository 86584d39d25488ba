"""Stage I: train the filters on the task while the body stays frozen and in eval mode (TED, section "Stage I")."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.heads import Prober
from ted_ds.models.predictions import LossWeights
from ted_ds.numerics.layer_map import Layer, layer_names
from ted_ds.numerics.objective import combine
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.objectives.finetune import label_counter
from ted_ds.objectives.term import Term, Terms
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.step_clock import FORWARD, LOSSES, timed


class FilterObjective(Terms):
    """The mean over filters of each one's task loss: K independent probes."""

    def __init__(
        self,
        task: TaskTerms,
        body: FrozenModel,
        layers: Sequence[Layer],
        places: Sequence[int] | None = None,
        *,
        prefix: str = "",
    ) -> None:
        """Read filters on the states of ``body``.

        Args:
            task: What the task loss is.
            body: Gives the states.
            layers: Its side of the layer map.
            places: Which places in the layer map are here; None for all.
            prefix: Before each layer, in the names of the terms.
        """
        self._task, self._body = task, body
        self._places = range(len(layers)) if places is None else places
        self._names = [f"loss/task/{prefix}{name}" for name in layer_names(layers)]
        kept = label_counter(task)
        super().__init__([Term(name, 1.0 / len(self._names), kept) for name in self._names])

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A microbatch's share of the step's loss, and the sum of each filter's; ``forward`` is the probes'."""
        totals: dict[str, Tensor] = {}

        def learn(predict: Prober) -> Tensor:
            sums: dict[str, Tensor] = {}

            @timed(LOSSES)
            def probe(place: int, state: Tensor) -> None:
                predictions = predict(place, state, batch.inputs)
                losses = predictions.losses(self._task, batch, LossWeights())
                sums[self._names[place]], totals[self._names[place]] = losses.weighted, losses.task

            self._body(batch.inputs, on_state=probe, states_are_saved=True)
            weights = self.weights
            here = [self._names[place] for place in self._places]
            return combine(sums, {name: counts[name] for name in here}, {name: weights[name] for name in here})

        with timed(FORWARD):
            loss = forward(learn)
        return loss, {name: totals[name] for name in self.weights if name in totals}


class FilterObjectives(Terms):
    """The sum over models of the objective of each one's filters, on the same batch."""

    def __init__(self, sides: Mapping[str, FilterObjective], *, here: Collection[str]) -> None:
        """Learn the filters of each side; ``here`` are those that run on this pipeline stage."""
        super().__init__([term for side in sides.values() for term in side.terms])
        self._sides, self._here = sides, here

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`FilterObjective`; ``forward`` is that of :class:`ted_ds.models.heads.ProbesOfModels`."""
        totals: dict[str, Tensor] = {}

        def learn(probes: Mapping[str, Callable[..., Any]]) -> Tensor:
            losses = []
            for side, objective in self._sides.items():
                if side in self._here:
                    loss, of_side = objective.loss(probes[side], batch.read_by(side), counts)
                    losses.append(loss)
                    totals.update(of_side)
            return sum(losses[1:], start=losses[0])

        return forward(learn), totals
