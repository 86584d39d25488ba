"""What a block's attention makes of each token: its queries, keys and values, for one forward pass at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ted_ds.models.parts import blocks_of
from ted_ds.models.taps import TappedModel

Attended = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each ``[batch, seq, width]``."""


class RelationTap:
    """Hands over queries, keys and values as a block's linear maps put them out, all heads beside each other.

    So before they are turned by their positions or normalised, and keys and values once where several heads of queries
    share them.
    """

    def __init__(self, tapped: TappedModel, number: int) -> None:
        """Tap block ``number``, counted from 1, of a model whose family says where these maps are."""
        self.number = number
        block = blocks_of(tapped.model, tapped.family)[number - 1]
        self._names = tapped.family.attention_maps
        self._seen: dict[str, Tensor] | None = None
        for name in self._names:
            block.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(_map: nn.Module, _inputs: Any, output: Tensor) -> None:
            if self._seen is not None:
                self._seen.setdefault(name, output)  # DeBERTa has positions go through them behind the tokens

        return keep

    def listen(self) -> None:
        """Keep what the next forward pass makes of its batch."""
        self._seen = {}

    def take(self) -> Attended:
        """Those of the pass since :meth:`listen`; they are kept no longer."""
        assert self._seen is not None, "nobody listened"
        found, self._seen = [self._seen[name] for name in self._names], None
        if len(found) == 1:
            found = [*found[0].chunk(3, dim=-1)]
        queries, keys, values = found
        return queries, keys, values
