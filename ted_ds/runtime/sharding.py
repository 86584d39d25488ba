"""ZeRO-3 shards: build a model in shards, gather it for saving, count what a rank holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config


@contextlib.contextmanager
def sharded_loading(config: Mapping[str, Any]) -> Iterator[None]:
    """While this is open, ``from_pretrained`` shards weights over the ranks as it reads them."""
    # transformers holds it by one process-wide weak reference: keep it alive here, and drop it before the next model
    alive = HfDeepSpeedConfig(dict(config))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def full_state_dict(module: nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole parameters on the CPU, gathered one at a time; empty where not ``keep``.

    Every rank must call it. Parameters that share memory appear once, under their first name.
    """
    state = {}
    for name, parameter in module.named_parameters():
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if sharded else contextlib.nullcontext():
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return state


def parameters_held(module: nn.Module) -> int:
    """Parameters this rank stores between forward passes: its shard, or all where they are not sharded."""
    held = 0
    for parameter in module.parameters():
        held += parameter.data.numel()  # 0 for a sharded one that is not resident
        shard = getattr(parameter, "ds_tensor", None)
        held += shard.numel() if shard is not None else 0
    return held
