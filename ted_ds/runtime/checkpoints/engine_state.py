"""What DeepSpeed saves of a trainable engine, taken out and put back, on the same layout or another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.errors import CheckpointError, counted
from ted_ds.runtime.checkpoints.resharding import (
    WEIGHT,
    Fragment,
    Shards,
    fill_counters,
    fill_flat_groups,
    fill_weights,
    fill_whole_optimizer,
    open_shards,
    own_name,
    partitions_of,
)
from ted_ds.runtime.checkpoints.writer import SnapshotEngine

ENGINE_FOLDER = "engine"
"""DeepSpeed's tag, a folder in the checkpoint."""
STAND_IN = "stand_in"
"""Begins the name of a parameter that no model has: what an optimizer gets where there is nothing to train."""


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
    taken = storage.take()
    # it excludes one that is in several places, as the LM head of all filters, from the first of them only
    every = engine.module.named_parameters(remove_duplicate=False)
    frozen = {own_name(name) for name, parameter in every if not parameter.requires_grad}
    for file, content in taken.items():
        weights = content if file.name.startswith("layer_") else content.get("module")
        for name in [name for name in weights or () if own_name(name) in frozen]:
            del weights[name]
    return taken


def load_states(engine: Any, folder: Path) -> None:
    """Load this layout's own files. Every rank must call it."""
    engine.checkpoint_engine = SnapshotEngine()
    # frozen parameters are not among them
    found, _ = engine.load_checkpoint(str(folder), tag=ENGINE_FOLDER, load_module_strict=False)
    if found is None:
        raise ValueError(f"{folder / ENGINE_FOLDER}: DeepSpeed finds nothing to load")


class SavedEngine:
    """What a checkpoint holds of an engine on another layout."""

    def __init__(self, folder: Path, layout: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> None:
        """Open its files; they are read later.

        Args:
            folder: A checkpoint.
            layout: The one it was written on.
            groups: The names of the parameters this rank trains, in the optimizer's groups.

        Raises:
            CheckpointError: It lacks one of them.
        """
        self._folder, self._layout, self._groups = folder, layout, groups
        self._states, self._shards = open_shards(folder / ENGINE_FOLDER, layout)
        wanted = [name for group in groups for name in group if not name.startswith(STAND_IN)]
        missing = [name for name in wanted if not self._shards.knows(name)]
        if missing:
            raise CheckpointError(f"{folder}: lacks {counted(len(missing), 'trained parameter')} ({missing[0]}, ...)")

    def fill(self, states: dict[Path, Any], engine: Any, names: Mapping[int, str]) -> None:
        """Put what was saved in the place of what this rank would write now.

        What no checkpoint holds (:data:`STAND_IN`) stays as it is.

        Args:
            states: Of a new engine, on the layout that is wanted (:func:`take_states`).
            engine: That engine.
            names: Of its parameters, by their id.
        """
        shards, groups = self._shards, self._groups
        shapes = {names[id(p)]: getattr(p, "ds_shape", p.shape) for p in engine.module.parameters()}
        trained = {name for group in groups for name in group if shards.knows(name)}
        # tied weights have several names in a module's state
        every = engine.module.named_parameters(remove_duplicate=False)
        first = {own_name(name): names[id(parameter)] for name, parameter in every}

        def whole(name: str) -> Tensor | None:
            known = first.get(own_name(name))
            return shards.read(known, WEIGHT, 0, shapes[known].numel()) if known in trained else None

        for file, content in states.items():
            if "optimizer_state_dict" in content:
                scaling = _loss_scaling(self._folder / ENGINE_FOLDER, self._layout)
                _fill_optimizer(engine, content["optimizer_state_dict"], shards, names, scaling)
            elif file.name.startswith("layer_"):  # of a pipeline
                fill_weights(content, whole)
            else:
                fill_weights(content["module"] or {}, whole)
                fill_counters(content, self._states)
                if content["optimizer"] is not None:
                    sizes = [{name: shapes[name] for name in group} for group in groups]
                    fill_whole_optimizer(content["optimizer"], shards, sizes)


def _fill_optimizer(
    engine: Any,
    content: dict[str, Any],
    shards: Shards,
    names: Mapping[int, str],
    scaling: Mapping[str, Any],
) -> None:
    for key, value in scaling.items():
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
    ids = {name: id(parameter) for name, parameter in engine.module.named_parameters()}
    starts = {
        names[id(p)]: p._hp_mapping.lp_fragment_address.start
        for p in engine.module.parameters()
        if getattr(p, "_hp_mapping", None) is not None
    }
    fragments = [
        [
            Fragment(names[ids[name]], address.start, starts[names[ids[name]]], address.numel)
            for name, address in addresses.items()
        ]
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
