"""What evaluation scores of a batch, from an engine or a frozen model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.heads import Prober
from ted_ds.models.predictions import Predictions
from ted_ds.runtime.engine import TrainableEngine
from ted_ds.runtime.frozen import FrozenModel

Outputs = Callable[[Batch], tuple[Tensor, ...]]


def engine_outputs(engine: TrainableEngine) -> Outputs:
    """Of the tapped or filtered model that an engine trains."""
    return lambda batch: engine.engine(batch.inputs, lambda predictions, _: (predictions.outputs(batch.labels),))


def frozen_outputs(model: FrozenModel) -> Outputs:
    """Of a frozen model."""

    def forward(batch: Batch) -> tuple[Tensor, ...]:
        found: list[Tensor] = []

        def read(predictions: Predictions | None) -> None:
            assert predictions is not None
            found.append(predictions.outputs(batch.labels))

        model(batch.inputs, read)
        return tuple(found)

    return forward


def probe_outputs(engine: TrainableEngine, body: FrozenModel) -> Outputs:
    """Of each probe that an engine trains on a frozen body, in the order of the layer map."""

    def forward(batch: Batch) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}

        def learn(predict: Prober) -> None:
            def probe(place: int, state: Tensor) -> None:
                found[place] = predict(place, state, batch.attention_mask).outputs(batch.labels)

            body(batch.inputs, on_state=probe)

        engine.engine(learn)
        return tuple(found[place] for place in sorted(found))

    return forward
