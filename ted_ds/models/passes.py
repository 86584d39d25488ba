"""Blocks that several layers go through: what each pass through one puts out has a module of its own here."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of, embeddings_of


class Passes(nn.Module):
    """Stands behind the blocks of a model, and counts how often states have gone through any of them.

    The state behind pass ``i`` (from 0) goes through ``modules_of_layers[i]``, which hands it on as it is: hooks on
    that see this layer alone. Activation checkpointing computes a block again inside its forward, which is no pass.
    """

    def __init__(self, model: nn.Module, family: Family, num_layers: int) -> None:
        super().__init__()
        self.modules_of_layers = nn.ModuleList(nn.Identity() for _ in range(num_layers))
        self._count = 0
        embeddings_of(model, family).register_forward_pre_hook(self._restart)
        for block in blocks_of(model, family):
            block.register_forward_hook(self._hand_on)

    def _restart(self, _embeddings: nn.Module, _inputs: Any) -> None:
        self._count = 0

    def _hand_on(self, _block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        module = self.modules_of_layers[self._count]
        self._count += 1
        state: Tensor = module(output)
        return state
