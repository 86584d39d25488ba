"""The one trainable module of Stage II: the student and its filters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ted_ds.models.taps import TappedModel


class FilteredModel(nn.Module):
    """A tapped model with its filters behind it; one ``forward``, so that an engine sees one module."""

    def __init__(self, tapped: TappedModel, bank: nn.Module) -> None:
        super().__init__()
        self.tapped = tapped
        self.bank = bank

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits, and the filtered states in the order of the layer map."""
        logits, states = self.tapped(inputs)
        return logits, self.bank(states)
