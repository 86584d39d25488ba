"""How a model's blocks are run: which attention, recomputed or not, compiled or not. Its weights stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of

ATTENTION = {"auto": None, "eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}
"""Transformers' names; ``auto`` leaves the choice to it."""


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each block's input for the backward pass, and compute the rest of it again."""
    # transformers 5 renamed it, and warns of the old name
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compile_blocks(model: nn.Module, family: Family) -> None:
    """Compile each block's forward with ``torch.compile``, once for all of them.

    The forward and not the call: hooks (taps, the watch for numbers that are not finite) stay outside.
    """
    for block in blocks_of(model, family):
        block.forward = torch.compile(block.forward)
