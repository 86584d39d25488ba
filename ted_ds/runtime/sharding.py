"""ZeRO-3 shards: build a model in shards, gather it for saving, count what a rank holds."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from ted_ds.models.quantised import stored_bytes


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


def whole_parameters(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each whole parameter in turn, gathered while it is looked at. Every rank must read them all.

    Parameters that share memory appear once, under their first name.
    """
    for name, parameter in module.named_parameters():
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if sharded else contextlib.nullcontext():
            yield name, parameter.detach()


@contextlib.contextmanager
def gathered(parameters: Sequence[torch.Tensor], *, for_writing: bool = False) -> Iterator[None]:
    """Have parameters whole while this is open. Every rank must call it; what rank 0 writes counts for all."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if for_writing else None):
        yield


def full_state_dict(module: nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole parameters on the CPU; empty where not ``keep``. Every rank must call it."""
    state = {}
    for name, parameter in whole_parameters(module):
        if keep:
            state[name] = parameter.to("cpu", copy=True).contiguous()
    return state


def release_engine(engine: Any) -> None:
    """Free an engine, its module's weights and its optimizer state; none of them can be used afterwards."""
    module, optimizer = engine.module, engine.optimizer
    engine.destroy()
    # ZeRO-3 keeps each root module on a global list, also after destroy(), and with it all that its hooks hold
    FWD_MODULE_STACK[:] = [one for one in FWD_MODULE_STACK if one is not module]
    # and under ZeRO-3, once it has stepped, engine and parameters keep each other alive where Python's collector does
    # not see it: empty them, so that only hollow objects stay behind
    empty_parameters(module)
    if optimizer is not None:
        vars(optimizer).clear()
    vars(engine).clear()


def empty_parameters(module: nn.Module) -> None:
    """Free a module's weights, whole or sharded, whoever still holds the module."""
    parameter: Any
    for parameter in module.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)
        parameter.grad = None
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor = torch.empty(0, dtype=parameter.dtype)


def forget_order_of_modules(engine: Any) -> None:
    """Make ZeRO-3 learn anew which module follows which: it fetches weights ahead, also of modules that are gone."""
    # of an engine that trains, the optimizer has what a frozen one has in its place
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    coordinator = offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def loss_scale_of(engine: Any) -> float:
    """By which an engine multiplies losses before their backward pass: of fp16; others have none, or 1."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


def forget_passes(engine: Any, module: nn.Module) -> None:
    """Bring ZeRO-3 back to where it was before passes whose end it did not see: it expects each to go all the way."""
    if engine.zero_optimization_stage() != 3:
        return
    for part in module.modules():
        for counter in ("ds_grads_remaining", "applied_pre_backward_ref_cnt"):
            if counter in vars(part):
                setattr(part, counter, 0)
    engine.empty_partition_cache()
    forget_order_of_modules(engine)


def collect_garbage() -> None:
    """Give memory of the last phase back: hooks and engines are reference cycles, freed only by the collector."""
    gc.collect()
    accelerator: Any = get_accelerator()
    accelerator.empty_cache()


def parameters_held(module: nn.Module) -> int:
    """Parameters this rank stores between forward passes: its shard, or all where they are not sharded."""
    held = 0
    for parameter in module.parameters():
        held += parameter.data.numel()  # 0 for a sharded one that is not resident
        shard = getattr(parameter, "ds_tensor", None)
        held += shard.numel() if shard is not None else 0
    return held


def bytes_held(module: nn.Module) -> int:
    """Bytes of what :func:`parameters_held` counts."""
    held = 0
    for parameter in module.parameters():
        held += stored_bytes(parameter)
        shard = getattr(parameter, "ds_tensor", None)
        held += stored_bytes(shard) if shard is not None else 0
    return held


def all_finite(module: nn.Module) -> bool:
    """Whether no weight this rank stores is NaN or infinite."""
    stored = [getattr(parameter, "ds_tensor", parameter) for parameter in module.parameters()]
    return all(bool(tensor.detach().isfinite().all()) for tensor in stored)
