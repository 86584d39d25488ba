"""The samples of a set over and over, in an order that follows from its name alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ted_ds.data.samples import Sample


class Epochs:
    """Each epoch is a permutation of the samples, computed without those before it; one follows the other."""

    def __init__(self, samples: Sequence[Sample], name: str) -> None:
        """Go through ``samples``, in permutations that ``name`` decides."""
        self.samples, self._name = samples, name
        self._epoch_order: tuple[int, list[int]] | None = None

    def between(self, start: int, stop: int) -> list[Sample]:
        """The samples at these places of all epochs, one after the other."""
        found: list[Sample] = []
        while start < stop:
            epoch, begin = divmod(start, len(self.samples))
            end = min(begin + stop - start, len(self.samples))
            found += [self.samples[index] for index in self._order(epoch)[begin:end]]
            start += end - begin
        return found

    def _order(self, epoch: int) -> list[int]:
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = list(range(len(self.samples)))
            random.Random(f"{self._name} {epoch}").shuffle(order)
            self._epoch_order = (epoch, order)
        return self._epoch_order[1]
