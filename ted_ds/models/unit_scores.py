"""How much each unit of a model does (:mod:`ted_ds.models.units`), by what goes through it while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of, has_part
from ted_ds.models.units import HEADS, HIDDEN, INNER, Widths, paths_of_channels
from ted_ds.numerics.importance import head_sums, share_sums, size_sums

SHARES = "shares"
"""Of each channel in the squares of what a norm takes."""
Place = tuple[int | None, str]
"""A module: a block's number with its name within it, or None with its path."""


class UnitScores:
    """Sums over kept tokens of what the units of a model do, in fp64 on its device."""

    def __init__(self, model: PreTrainedModel, family: Family, widths: Widths) -> None:
        """Of no tokens yet.

        Args:
            model: Whose units.
            family: Where its parts are.
            widths: How many it has of each.
        """
        self._model, self._family, self._widths = model, family, widths
        self._kept: Tensor | None = None
        self.sums: dict[tuple[str, Place], Tensor] = {}
        """By kind: of channels behind each norm and of their shares before it, of each block's neurons and heads."""

    @contextlib.contextmanager
    def listening(self, kept: Tensor) -> Iterator[None]:
        """Take in what goes through the model meanwhile, of tokens that are ``kept``, ``[batch, seq]``."""
        self._kept = kept.flatten()
        with contextlib.ExitStack() as hooks:
            for place, module in self._modules():
                name = place[1]
                if place[0] is None or name in self._family.norms_of_blocks:
                    hooks.callback(module.register_forward_hook(self._norm_hook(place)).remove)
                else:
                    into = self._family.units_of_maps[name][1]
                    hooks.callback(module.register_forward_pre_hook(self._map_hook(place, into)).remove)
            yield
        self._kept = None

    def _modules(self) -> Iterator[tuple[Place, nn.Module]]:
        """The norms, and the maps that read neurons and heads."""
        family = self._family
        readers = [family.map_reading(kind) for kind in (INNER, HEADS)]
        for number, block in enumerate(blocks_of(self._model, family)):
            for name in (*family.norms_of_blocks, *readers):
                yield (number, name), block.get_submodule(name)
        for path in paths_of_channels(family):
            if not _is_there(self._model, path):
                continue
            for name, module in self._model.get_submodule(path).named_modules():
                weight = getattr(module, "weight", None)
                if isinstance(weight, Tensor) and _dimensions(weight) == 1:
                    yield (None, f"{path}.{name}" if name else path), module

    def _tokens(self, states: Tensor) -> Tensor:
        """``[kept tokens, units]``."""
        assert self._kept is not None
        return states.reshape(-1, states.shape[-1])[self._kept]

    def _add(self, kind: str, place: Place, values: Tensor) -> None:
        key = (kind, place)
        self.sums[key] = self.sums[key] + values if key in self.sums else values

    def _norm_hook(self, place: Place) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(HIDDEN, place, size_sums(self._tokens(output)))
            centred = isinstance(module, nn.LayerNorm)
            self._add(SHARES, place, share_sums(self._tokens(inputs[0]), centred=centred))

        return hook

    def _map_hook(self, place: Place, kind: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = self._tokens(inputs[0])
            self._add(kind, place, size_sums(tokens) if kind == INNER else head_sums(tokens, self._widths.heads))

        return hook


def _is_there(model: nn.Module, path: str) -> bool:
    """Whether a module is at a path, of which the beginning may be missing, too."""
    parts = path.split(".")
    return all(has_part(model, ".".join(parts[: end + 1])) for end in range(len(parts)))


def _dimensions(weight: Tensor) -> int:
    """Of a parameter, which ZeRO-3 may hold in shards."""
    return len(getattr(weight, "ds_shape", weight.shape))
