"""The embeddings and the first blocks of a model, where they do not train: what they are made of, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ted_ds.models.family import Family
from ted_ds.models.parameters import paths_behind_blocks
from ted_ds.models.parts import blocks_of, has_part
from ted_ds.models.taps import TappedModel


def tensors_of_prefix(model: nn.Module, family: Family, number: int) -> dict[str, Tensor]:
    """Parameters and buffers, by name, that the state behind the first ``number`` blocks may hang on.

    They are the body's, but for other blocks and what is behind all of them. So what all blocks share, such as a table
    of relative positions, is among them.
    """
    body: Any = model.base_model
    wanted = {id(one) for one in (*body.parameters(), *body.buffers())}
    wanted -= {
        id(one) for module in _behind(model, family, number) for one in (*module.parameters(), *module.buffers())
    }
    # which an LM head may share, and another pipeline stage may have
    if has_part(model, family.token_embeddings_path):
        wanted |= {id(one) for one in model.get_submodule(family.token_embeddings_path).parameters()}
    return {name: one for name, one in (*model.named_parameters(), *model.named_buffers()) if id(one) in wanted}


def freeze_prefix(model: nn.Module, family: Family, number: int) -> None:
    """Let embeddings and the first ``number`` blocks be as they are: no gradient is made of them."""
    for one in tensors_of_prefix(model, family, number).values():
        if isinstance(one, nn.Parameter):
            one.requires_grad_(False)


def what_drops(model: nn.Module, family: Family, number: int) -> str | None:
    """A module of embeddings and the first ``number`` blocks that drops something in training; None where none does."""
    body: Any = model.base_model
    behind = {id(one) for module in _behind(model, family, number) for one in module.modules()}
    inside = {id(one) for one in body.modules()} - behind
    for name, module in model.named_modules():
        shares = [share for key, share in vars(module).items() if key == "p" or "drop" in key]
        if id(module) in inside and any(isinstance(share, float) and share > 0 for share in shares):
            return name
    return None


def _behind(model: nn.Module, family: Family, number: int) -> list[nn.Module]:
    paths = [path for path in paths_behind_blocks(family) if has_part(model, path)]
    return [*blocks_of(model, family)[number:], *map(model.get_submodule, paths)]


class PrefixStates:
    """What the first layers of a model that trains put out in its last forward pass with a graph.

    Only what does not train is looked at: no gradient goes through these states.
    """

    def __init__(self, tapped: TappedModel, layers: Iterable[int]) -> None:
        """Keep the states of ``layers`` of a model of one stack; of a share, also of the layer that arrives."""
        modules = tapped.modules_of_layers()
        self._states: dict[int, Tensor] = {}
        for layer in {*layers}:
            modules[layer].register_forward_hook(self._keep(layer))

    def _keep(self, layer: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():  # else it is scored, and nobody takes them
                state: Tensor = output[0] if isinstance(output, tuple | list) else output
                self._states[layer] = state.detach()

        return keep

    def take(self, shape: Sequence[int]) -> Mapping[int, Tensor]:
        """The states, ``[batch, seq, hidden]``, of a batch of this ``shape``; they are kept no longer."""
        assert self._states, "its model has not run since"
        # rows of isolated documents may have gone through the model as one
        found = {layer: state.reshape(*shape, state.shape[-1]) for layer, state in self._states.items()}
        self._states = {}
        return found
