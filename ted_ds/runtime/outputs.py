"""What evaluation scores of a batch, from an engine or a frozen model: outputs by their place in the layer map."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.heads import FilterProbes, Prober
from ted_ds.models.predictions import Predictions, VocabularyPredictions
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.step_runner import StepRunner

Outputs = Callable[[Batch], dict[int, Tensor]]
"""One output, numbered 0, of a model; one for each filter in Stage I."""


def engine_outputs(engine: StepRunner) -> Outputs:
    """Of the tapped or filtered model that an engine trains."""

    def read(forward: Callable[..., Any], batch: Batch) -> dict[int, Tensor]:
        # ZeRO-3 looks through what its modules return, and knows tuples
        def learn(predictions: Predictions | None, _: Any) -> tuple[Tensor, ...]:
            return () if predictions is None else (predictions.outputs(batch),)

        return dict(enumerate(forward(batch.inputs, learn)))

    return lambda batch: engine.look(batch, read)


def frozen_outputs(model: FrozenModel, look: Callable[[Predictions, Batch], None] | None = None) -> Outputs:
    """Of a frozen model, whose predictions something else may look at first, while its weights are at hand."""

    def forward(batch: Batch) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def read(predictions: Predictions | None) -> None:
            assert predictions is not None
            if look is not None:
                look(predictions, batch)
            found[0] = predictions.outputs(batch)

        model(batch.inputs, read)
        return found

    return forward


def row_outputs(model: FrozenModel) -> Outputs:
    """Of a frozen language model, what each row scores."""

    def forward(batch: Batch) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def read(predictions: Predictions | None) -> None:
            assert isinstance(predictions, VocabularyPredictions)
            found[0] = predictions.row_scores(batch.labels)

        model(batch.inputs, read)
        return found

    return forward


def probe_outputs(engine: StepRunner, bodies: Sequence[tuple[str, FrozenModel | None]], num_places: int) -> Outputs:
    """Of each probe that an engine trains on frozen models: those of the first, then those of the next.

    Args:
        engine: Trains them, as one :class:`ted_ds.models.heads.ProbesOfModels`.
        bodies: The models by side; None where this pipeline stage has nothing of one.
        num_places: In the layer map.
    """

    def read(forward: Callable[..., Any], batch: Batch) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def learn(probes: Mapping[str, FilterProbes]) -> None:
            for index, (side, body) in enumerate(bodies):
                if body is not None:
                    probes[side](functools.partial(read_one, body, batch.read_by(side), index * num_places))

        def read_one(body: FrozenModel, rows: Batch, first: int, predict: Prober) -> None:
            def probe(place: int, state: Tensor) -> None:
                found[first + place] = predict(place, state, rows.inputs).outputs(rows)

            body(rows.inputs, on_state=probe)

        forward(learn)
        return found

    return lambda batch: engine.look(batch, read)
