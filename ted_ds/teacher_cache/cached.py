"""A teacher that is read from a cache instead of being run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.data.microbatch import to_device
from ted_ds.models.predictions import DensePredictions, Predictions, Taught
from ted_ds.teacher_cache.store import Reader, Record


class CachedTeacher:
    """Gives the predictions and the *filtered* states that the cache has of a batch's examples."""

    def __init__(self, reader: Reader[Record], *, dtype: torch.dtype, side: str, of_texts: bool = False) -> None:
        """Read through ``reader``, and give states of ``dtype`` padded on the ``right`` or ``left`` side.

        ``of_texts``: they are one of each text, of no token.
        """
        self._reader, self._dtype, self._side, self._of_texts = reader, dtype, side, of_texts

    def teach(
        self,
        batch: Batch,
        then: Callable[[Taught | None], None],
        *,
        with_predictions: bool,
        on_state: Callable[[int, Tensor], None] | None,
    ) -> None:
        """See :class:`ted_ds.runtime.teacher.Teacher`."""
        wanted = {row: sample for row, sample in enumerate(batch.samples) if sample >= 0}
        found = {row: self._reader.record.unpack(*self._reader.read(sample)) for row, sample in wanted.items()}
        record, device, (rows, length) = self._reader.record, batch.input_ids.device, batch.input_ids.shape
        length = 1 if self._of_texts else length
        if on_state is not None:
            for place in range(record.num_layers):
                states = torch.zeros(rows, length, record.dim, dtype=self._dtype)
                for row, (_, of_layers) in found.items():
                    own = of_layers[place]
                    start = length - len(own) if self._side == "left" else 0
                    states[row, start : start + len(own)] = own.to(self._dtype)
                on_state(place, to_device(states, device))
        predictions: Predictions | None = None
        if with_predictions:
            logits = torch.zeros(rows, record.num_outputs)
            for row, (outputs, _) in found.items():
                logits[row] = outputs
            predictions = DensePredictions(to_device(logits, device))
        then(predictions)
