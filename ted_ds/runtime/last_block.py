"""The last block's MLP on those tokens alone whose states anything reads behind it.

Of a block's tokens attention reads keys and values, whichever of them are read behind the block; its MLP, two thirds of
a block, takes each token by itself. What is skipped leaves 0 in the place of the MLP's output: such a token's state is
none of the model's, and nobody may read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ted_ds.data.loader import Batch
from ted_ds.models.parts import blocks_of, has_part, layers_of_blocks
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import read_at

SKIPPED = 0.0
"""What stands for the MLP's output of a token that is not read; tests put NaN there."""


class LastBlock:
    """The last block of a frozen model, whose MLP may be asked to run on some tokens."""

    def __init__(self, tapped: TappedModel) -> None:
        """Look where the MLP begins and ends; of a model in which that is not known, it always runs whole.

        To be called once its modules are those that will run.
        """
        self._tapped: TappedModel | None = tapped
        self._hooks: tuple[RemovableHandle, ...] = ()
        self._rows: Tensor | None = None
        self._num_tokens = 0
        self._shape: torch.Size | None = None
        """Of what the MLP was given, while it runs on some tokens."""
        self._is_known = _mlp_is_known(tapped)
        if self._is_known:
            family, block = tapped.family, blocks_of(tapped.model, tapped.family)[-1]
            assert family.mlp_path is not None
            assert family.output_map is not None
            self._hooks = (
                block.get_submodule(family.mlp_path).register_forward_pre_hook(self._pick),
                block.get_submodule(family.output_map).register_forward_hook(self._put_back),
            )

    def release(self) -> None:
        """Let go of the model, which has hooks from here: each would keep the other."""
        for hook in self._hooks:
            hook.remove()
        self._tapped, self._is_known = None, False

    @contextlib.contextmanager
    def read_for(self, batch: Batch) -> Iterator[None]:
        """Let it run, meanwhile, on the tokens alone that predictions for this batch are made of."""
        self._rows, self._num_tokens = self._rows_read(batch), batch.input_ids.numel()
        try:
            yield
        finally:
            self._rows = self._shape = None

    def _rows_read(self, batch: Batch) -> Tensor | None:
        """Which of the flattened tokens; None for all."""
        tapped = self._tapped
        assert tapped is not None, "released"
        # whose layer map ends there, or in whose tokens nothing is said of what is read
        if not self._is_known or tapped.share.stop in tapped.layers or batch.of_teacher is not None:
            return None
        if tapped.has_lm_head:
            rows = batch.output_rows
        elif tapped.pooled and tapped.pooled_token != "mean":
            rows = _pooled(tapped, batch)
        else:
            rows = None
        return None if rows is None or not 0 < len(rows) < batch.input_ids.numel() else rows

    def _pick(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        state: Tensor = inputs[0]
        self._shape = None
        # attention may have left out padding
        if self._rows is None or state.shape[:-1].numel() != self._num_tokens:
            return None
        self._shape = state.shape
        picked = state.reshape(-1, state.shape[-1])[self._rows]
        return (picked.view(*[1] * (state.dim() - 2), *picked.shape), *inputs[1:])

    def _put_back(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if self._shape is None:
            return None
        whole = output.new_full((self._num_tokens, output.shape[-1]), SKIPPED)
        whole[self._rows] = output.view(-1, output.shape[-1])
        return whole.view(*self._shape[:-1], output.shape[-1])


def _pooled(tapped: TappedModel, batch: Batch) -> Tensor:
    """Of each text, the flattened token that its label is read at."""
    ids = batch.input_ids
    starts = torch.arange(len(ids), device=ids.device) * ids.shape[1]
    if tapped.pooled_token == "first":  # which transformers' own forward takes for the row's first
        return starts
    unread = None if tapped.unread_id is None else ids == tapped.unread_id
    return starts + read_at(batch.attention_mask, how=tapped.pooled_token, unread=unread)


def _mlp_is_known(tapped: TappedModel) -> bool:
    """Whether the MLP of the last block begins and ends where the family says, and nobody else reads its output."""
    family, model = tapped.family, tapped.model
    if family.mlp_path is None or family.output_map is None or family.is_stacked or not tapped.share.is_whole:
        return False
    block = blocks_of(model, family)[-1]
    return (
        has_part(block, family.mlp_path)
        and has_part(block, family.output_map)  # a mixture of experts has none
        and tapped.passes is None  # else other layers go through it, too
        and layers_of_blocks(model, family)[-1] is block
        # compiled: it would be compiled anew for each number of tokens
        and "forward" not in vars(block)
        and not getattr(model.config, "chunk_size_feed_forward", 0)
        # of ELECTRA's choices, the one token, or all, that its config names
        and (not hasattr(model, "sequence_summary") or model.config.summary_type == "first")
    )
