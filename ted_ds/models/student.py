"""The one trainable module of Stage II: the student and its filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ted_ds.models.predictions import Predictions
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank, Match

Result = TypeVar("Result")


class Matcher:
    """A student's states at the places of the layer map, within its forward pass."""

    def __init__(self, filters: nn.ModuleList, states: Sequence[Tensor]) -> None:
        self._filters, self._states = filters, states

    def __call__(self, place: int, match: Match) -> Tensor:
        """The layer-wise term of a place."""
        return self._filters[place](self._states[place], match)

    def state(self, place: int) -> Tensor:
        """The student's states there."""
        return self._states[place]

    def filtered(self, place: int) -> Tensor:
        """The same through their filter."""
        return self._filters[place](self._states[place])


class FilteredModel(nn.Module):
    """A tapped model with its filters behind it; one ``forward``, so that an engine sees one module."""

    def __init__(self, tapped: TappedModel, bank: FilterBank) -> None:
        super().__init__()
        self.tapped = tapped
        self.bank = bank

    @property
    def aliases(self) -> dict[str, str]:
        """See :class:`TappedModel`."""
        return {f"tapped.{name}": f"tapped.{first}" for name, first in self.tapped.aliases.items()}

    def forward(
        self, inputs: Mapping[str, Tensor], then: Callable[[Predictions | None, Matcher], Result] | None = None
    ) -> Result | tuple[Tensor, tuple[Tensor, ...]]:
        """What ``then`` makes of the predictions and what compares the states, within this forward pass.

        Without it: logits, and the filtered states in the order of the layer map.
        """
        if then is None:
            logits, states = self.tapped(inputs)
            return logits, self.bank(states)

        def compare(predictions: Predictions | None, states: tuple[Tensor, ...]) -> Result:
            return then(predictions, Matcher(self.bank.filters, states))

        return self.tapped(inputs, compare)
