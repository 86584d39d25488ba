"""How a model's blocks are run: which attention, recomputed or not, compiled or not. Its weights stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ted_ds.models import document_attention
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of

ATTENTION = {
    "auto": None,
    "eager": "eager",
    "sdpa": "sdpa",
    "flash": "flash_attention_2",
    "packed": document_attention.register(),
}
"""Transformers' names; ``auto`` leaves the choice to it."""


def checkpoint_activations(model: PreTrainedModel, family: Family) -> None:
    """Keep only each block's input for the backward pass, and compute the rest of it again.

    Where transformers cannot do so with a model, its blocks' forwards are wrapped here in the way of those that can.
    """
    if not model.supports_gradient_checkpointing:
        for block in blocks_of(model, family):
            block.forward = functools.partial(_computed_again, block, block.forward)
        return
    # transformers 5 renamed it, and warns of the old name
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _computed_again(block: nn.Module, plain: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not block.training:
        return plain(*arguments, **named)
    return checkpoint(plain, *arguments, use_reentrant=False, **named)


def compile_blocks(model: nn.Module, family: Family) -> None:
    """Compile each block's forward with ``torch.compile``, once for all of them.

    The forward and not the call: hooks (taps, the watch for numbers that are not finite) stay outside.
    """
    for block in blocks_of(model, family):
        block.forward = torch.compile(block.forward)
