"""What DeepSpeed saves of a trainable engine, taken out and put back, on the same layout or another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ted_ds.runtime.checkpoints.resharding import (
    WEIGHT,
    Fragment,
    Shards,
    fill_flat_groups,
    fill_model_states,
    fill_whole_optimizer,
    open_shards,
    partitions_of,
)
from ted_ds.runtime.checkpoints.writer import SnapshotEngine

ENGINE_FOLDER = "engine"
"""DeepSpeed's tag, a folder in the checkpoint."""


def layout_of(engine: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """What must be equal for DeepSpeed to load its own files; ``names`` are those of parameters, by their id."""
    return {
        "zero_stage": int(engine.zero_optimization_stage()),
        "num_ranks": int(engine.dp_world_size),
        "optimizer": type(engine.optimizer).__name__,
        "inner_optimizer": type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__,
        "order": _order_of(engine, names),
    }


def _order_of(engine: Any, names: Mapping[int, str]) -> str:
    """A hash of which parameter is where in the optimizer's flat tensors: settings of ZeRO change it."""
    optimizer = engine.optimizer
    groups: Any = []
    for attribute in ("round_robin_bit16_groups", "bf16_groups", "fp16_groups"):
        groups = groups or getattr(optimizer, attribute, [])
    order = [[names[id(parameter)] for parameter in group] for group in groups]
    paddings = getattr(optimizer, "round_robin_bit16_padding", None)
    return hashlib.sha256(f"{order} {paddings}".encode()).hexdigest()[:16]


def take_states(engine: Any, folder: Path) -> dict[Path, Any]:
    """Copies of what this rank would write into ``folder``, by file. Every rank must call it.

    Frozen parameters are left out: they come from the model's own files.
    """
    storage = SnapshotEngine()
    engine.checkpoint_engine = storage
    engine._copy_recovery_script = lambda _place: None  # it would be written on the side; DeepSpeed's package has it
    engine.save_checkpoint(str(folder), tag=ENGINE_FOLDER, save_latest=False, exclude_frozen_parameters=True)
    return storage.take()


def load_states(engine: Any, folder: Path) -> None:
    """Load this layout's own files. Every rank must call it."""
    engine.checkpoint_engine = SnapshotEngine()
    # frozen parameters are not among them
    found, _ = engine.load_checkpoint(str(folder), tag=ENGINE_FOLDER, load_module_strict=False)
    if found is None:
        raise ValueError(f"{folder / ENGINE_FOLDER}: DeepSpeed finds nothing to load")


def reshard(
    engine: Any, folder: Path, layout: Mapping[str, Any], place: Path, groups: Sequence[Sequence[str]]
) -> dict[Path, Any]:
    """What this rank would have written into ``place``, had it trained what is in ``folder``. Every rank must call it.

    Args:
        engine: A new engine, on the layout that is wanted.
        folder: A checkpoint.
        layout: The one it was written on.
        place: Where the result will be loaded from.
        groups: The names of the trained parameters in the optimizer's groups.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    old, shards = open_shards(folder / ENGINE_FOLDER, layout["zero_stage"], groups)
    states = take_states(engine, place)
    shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in engine.module.named_parameters()}
    for content in states.values():
        if "module" in content:
            aliases = _first_names(engine.module)
            trained = {name for group in groups for name in group}

            def whole(name: str, aliases: Mapping[str, str] = aliases, trained: set[str] = trained) -> Tensor | None:
                first = aliases.get(name)
                return shards.read(first, WEIGHT, 0, shapes[first].numel()) if first in trained else None

            fill_model_states(content, old, whole)
            if content["optimizer"] is not None:
                fill_whole_optimizer(content["optimizer"], shards, [{n: shapes[n] for n in group} for group in groups])
        else:
            _fill_optimizer(engine, content["optimizer_state_dict"], shards, names, folder, layout)
    return states


def _fill_optimizer(
    engine: Any,
    content: dict[str, Any],
    shards: Shards,
    names: Mapping[int, str],
    folder: Path,
    layout: Mapping[str, Any],
) -> None:
    for key, value in _loss_scaling(folder / ENGINE_FOLDER, layout).items():
        if key in content:
            content[key] = value
    if "fp32_flat_groups" in content:
        rank = torch.distributed.get_rank(engine.optimizer.dp_process_group)
        fragments = [
            [*partitions_of({names[id(p)]: p.ds_numel for p in group}, rank, engine.dp_world_size)]
            for group in engine.optimizer.fp16_groups
        ]
        fill_flat_groups(content["optimizer_state_dict"], content["fp32_flat_groups"], shards, fragments)
        return
    starts = {
        names[id(p)]: p._hp_mapping.lp_fragment_address.start
        for p in engine.module.parameters()
        if getattr(p, "_hp_mapping", None) is not None
    }
    fragments = [
        [Fragment(name, address.start, starts[name], address.numel) for name, address in addresses.items()]
        for addresses in content["param_slice_mappings"]
    ]
    weights = content["single_partition_of_fp32_groups"]
    fill_flat_groups(content["base_optimizer_state"], weights, shards, fragments)
    # state tensors have the length of the padded partition, of which the weights may have been stripped
    flats = [group["params"][0] for group in engine.optimizer.optimizer.param_groups]
    for index, state in content["base_optimizer_state"]["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == 1 and value.numel() < flats[index].numel():
                state[key] = torch.cat([value, value.new_zeros(flats[index].numel() - value.numel())])


def _loss_scaling(folder: Path, layout: Mapping[str, Any]) -> dict[str, Any]:
    if layout["zero_stage"] == 0:
        return {}  # fp32 alone
    (first, *_) = sorted(folder.glob("*rank_0_*optim_states.pt"))
    saved = torch.load(first, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
    return {key: saved[key] for key in ("loss_scaler", "dynamic_loss_scale", "overflow") if key in saved}


def _first_names(module: nn.Module) -> dict[str, str]:
    """For each name in the module's state, the first name of that parameter: tied ones have several."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every}
