"""A checkpoint of one layout rewritten for another: other ranks, other ZeRO stage.

DeepSpeed's own way, the universal checkpoint, refuses to go between ZeRO-3 and the other stages, knows no stage 0, and
under ZeRO-3 gives every parameter group the settings of the first (its weight decay, too). So each rank lets its new
engine say which files it would write now, fills them with values out of the old shards, and loads them as its own.
Old shards are mapped into memory, not read whole, and one fragment of one parameter is copied at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ted_ds.errors import CheckpointError

MODEL_FILES, OPTIMIZER_FILES = "model_states.pt", "optim_states.pt"
LAYER_FILES = "layer_*-model_states.pt"
"""Of a pipeline: weights, each layer's in a file."""
PIPELINE_PREFIX = re.compile(r"^(\d+\.)?module\.")
WEIGHT = "fp32"
"""Beside the optimizer's own keys (``exp_avg``, ...), the fp32 weights."""


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's elements in a flat tensor."""

    name: str
    place: int
    """Where it begins in the flat tensor."""
    start: int
    """Where it begins in the parameter."""
    length: int


class Shards(Protocol):
    """The optimizer state of a saved run."""

    @property
    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Settings of the parameter groups, without their parameters."""
        ...

    def knows(self, name: str) -> bool:
        """Whether a parameter is in it."""
        ...

    def keys(self, name: str) -> list[str]:
        """What is kept of a parameter, element by element."""
        ...

    def scalars(self, name: str) -> dict[str, Any]:
        """What is kept of it as a whole, such as Adam's step."""
        ...

    def read(self, name: str, key: str, start: int, length: int) -> Tensor:
        """Some elements."""
        ...


def open_shards(folder: Path, layout: Mapping[str, Any]) -> tuple[dict[str, Any], Shards]:
    """The model states of the first rank, and the optimizer state of all of them.

    Args:
        folder: DeepSpeed's files.
        layout: What they were written on. Stage 0 numbers its parameters, and its files do not name them: ``names``
            does, or in a pipeline ``stages``.

    Raises:
        CheckpointError: They are not named.
    """
    if layout["zero_stage"] == 0 and not layout.keys() & {"names", "stages"}:
        raise CheckpointError(
            f"{folder}: does not name its parameters, as an earlier version of ted_ds wrote it: go on with as many "
            "ranks under ZeRO-0"
        )
    of_stages = [
        _open_stage(folder, layout["zero_stage"], groups, number if "stages" in layout else None)
        for number, groups in enumerate(layout.get("stages", [layout.get("names", [])]))
    ]
    return of_stages[0][0], _Stages([shards for _, shards in of_stages])


def _open_stage(
    folder: Path, zero_stage: int, names_by_group: Sequence[Sequence[str]], number: int | None
) -> tuple[dict[str, Any], Shards]:
    prefix = "*" if number is None else f"*mp_rank_{number:02d}_"
    models = [_mapped(file) for file in sorted(folder.glob(prefix + MODEL_FILES), key=_rank_of)]
    files = sorted(folder.glob(prefix + OPTIMIZER_FILES), key=_rank_of)
    optimizers = [_mapped(file)["optimizer_state_dict"] for file in files]
    if zero_stage == 0:
        weights = models[0]["module"]
        if number is not None:
            files = folder.glob(LAYER_FILES)
            weights = {own_name(name): weight for file in files for name, weight in _mapped(file).items()}
        return models[0], _WholeState(models[0]["optimizer"], weights, names_by_group)
    if zero_stage == 3:
        return models[0], _PartitionedParameters(optimizers, models[0]["param_shapes"])
    return models[0], _PartitionedGroups(optimizers)


def own_name(name: str) -> str:
    """A parameter's name without what a pipeline puts before it."""
    return PIPELINE_PREFIX.sub("", name)


class _Stages:
    """The stages of a pipeline, or the only one; a weight that several have is taken from the first."""

    def __init__(self, stages: Sequence[Shards]) -> None:
        self._stages = stages
        groups = [group for stage in stages for group in stage.groups]
        self.groups = [group for index, group in enumerate(groups) if group not in groups[:index]]

    def knows(self, name: str) -> bool:
        return any(stage.knows(name) for stage in self._stages)

    def keys(self, name: str) -> list[str]:
        return self._of(name).keys(name)

    def scalars(self, name: str) -> dict[str, Any]:
        return self._of(name).scalars(name)

    def read(self, name: str, key: str, start: int, length: int) -> Tensor:
        return self._of(name).read(name, key, start, length)

    def _of(self, name: str) -> Shards:
        for stage in self._stages:
            if stage.knows(name):
                return stage
        raise ValueError(f"{name} is not in the checkpoint")


class _WholeState:
    """Stage 0: every rank has everything, and the first saved it."""

    def __init__(
        self, optimizer: Mapping[str, Any], weights: Mapping[str, Tensor], names_by_group: Sequence[Sequence[str]]
    ) -> None:
        self.groups = _without_parameters(optimizer["param_groups"])
        names = [name for group in names_by_group for name in group]
        self._state = {name: optimizer["state"].get(index, {}) for index, name in enumerate(names)}
        self._weights = weights

    def knows(self, name: str) -> bool:
        return name in self._state and name in self._weights

    def keys(self, name: str) -> list[str]:
        shape = self._weights[name].shape
        return [key for key, value in self._state[name].items() if isinstance(value, Tensor) and value.shape == shape]

    def scalars(self, name: str) -> dict[str, Any]:
        return _own({key: value for key, value in self._state[name].items() if key not in self.keys(name)})

    def read(self, name: str, key: str, start: int, length: int) -> Tensor:
        whole = self._weights[name] if key == WEIGHT else self._state[name][key]
        return whole.reshape(-1)[start : start + length].float().clone()


class _Fragments:
    """Stages 1 to 3: parameters in fragments over the ranks, a flat tensor for each rank and group."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.groups = groups
        self._pieces: dict[str, list[tuple[Fragment, Mapping[str, Any]]]] = {}

    def knows(self, name: str) -> bool:
        return name in self._pieces

    def add(self, fragment: Fragment, flat: Mapping[str, Any]) -> None:
        """Know of a fragment of the tensors in ``flat``."""
        self._pieces.setdefault(fragment.name, []).append((fragment, flat))

    def keys(self, name: str) -> list[str]:
        flat = self._pieces[name][0][1]
        return [key for key, value in flat.items() if key != WEIGHT and _is_flat(value, flat[WEIGHT])]

    def scalars(self, name: str) -> dict[str, Any]:
        flat = self._pieces[name][0][1]
        return _own({key: value for key, value in flat.items() if key != WEIGHT and key not in self.keys(name)})

    def read(self, name: str, key: str, start: int, length: int) -> Tensor:
        found = []
        for fragment, flat in self._pieces[name]:
            begin, end = max(start, fragment.start), min(start + length, fragment.start + fragment.length)
            if begin < end:
                place = fragment.place + begin - fragment.start
                found.append((begin, flat[key][place : place + end - begin]))
        read = torch.cat([piece for _, piece in sorted(found, key=lambda pair: pair[0])]).float()
        if len(read) != length:
            raise ValueError(f"{name}: {len(read)} of {length} elements of {key} from {start} on are in the checkpoint")
        return read


class _PartitionedGroups(_Fragments):
    """Stages 1 and 2: each group is one flat tensor, cut into equal parts."""

    def __init__(self, optimizers: Sequence[Mapping[str, Any]]) -> None:
        base = [optimizer["base_optimizer_state"] for optimizer in optimizers]
        super().__init__(_without_parameters(base[0]["param_groups"]))
        behind: dict[str, int] = {}
        for optimizer, of_rank in zip(optimizers, base, strict=True):
            weights = optimizer["single_partition_of_fp32_groups"]
            for index, addresses in enumerate(optimizer["param_slice_mappings"]):
                flat = {**of_rank["state"].get(index, {}), WEIGHT: weights[index]}
                for long_name, address in addresses.items():
                    name = own_name(long_name)
                    self.add(Fragment(name, address.start, behind.get(name, 0), address.numel), flat)
                    behind[name] = behind.get(name, 0) + address.numel


class _PartitionedParameters(_Fragments):
    """Stage 3: each parameter is cut into equal parts, the last ones padded."""

    def __init__(self, optimizers: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, torch.Size]]) -> None:
        super().__init__(_without_parameters(optimizers[0]["optimizer_state_dict"]["param_groups"]))
        for rank, optimizer in enumerate(optimizers):
            for index, of_group in enumerate(shapes):
                state = optimizer["optimizer_state_dict"]["state"].get(index, {})
                flat = {**state, WEIGHT: optimizer["fp32_flat_groups"][index]}
                sizes = {name: shape.numel() for name, shape in of_group.items()}
                for fragment in partitions_of(sizes, rank, len(optimizers)):
                    self.add(fragment, flat)


def partitions_of(sizes: Mapping[str, int], rank: int, num_ranks: int) -> Iterator[Fragment]:
    """A rank's part of each parameter under ZeRO-3, in a flat tensor of them all."""
    place = 0
    for name, size in sizes.items():
        part = math.ceil(size / num_ranks)
        start = min(rank * part, size)
        yield Fragment(name, place, start, min(part, size - start))
        place += part


# --- filling what the new engine would write ------------------------------------------------------------------------


def fill_weights(weights: dict[str, Tensor], whole: Callable[[str], Tensor | None]) -> None:
    """Put the old run's weights in place of the new engine's.

    Args:
        weights: What the new engine would write.
        whole: The weights of a parameter by its name there; None for what did not train.
    """
    for name, tensor in weights.items():
        value = whole(name) if tensor.numel() else None  # ZeRO-3 leaves only the names here
        if value is not None:
            weights[name] = value.reshape(tensor.shape).to(tensor.dtype)


def fill_counters(states: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Put the old run's schedule and counters in place of the new engine's, among the model states."""
    for key in ("lr_scheduler", "skipped_steps", "global_steps", "global_samples"):
        states[key] = old[key]


def fill_whole_optimizer(optimizer: dict[str, Any], shards: Shards, shapes: Sequence[Mapping[str, torch.Size]]) -> None:
    """Stage 0: a state for each parameter, numbered through the groups (``shapes``)."""
    _settle_groups(optimizer["param_groups"], shards)
    sizes = {name: shape for group in shapes for name, shape in group.items()}
    for index, (name, shape) in enumerate(sizes.items()):
        if not shards.knows(name):
            continue
        of_parameter = {key: shards.read(name, key, 0, shape.numel()).reshape(shape) for key in shards.keys(name)}
        optimizer["state"][index] = {**shards.scalars(name), **of_parameter}


def fill_flat_groups(
    optimizer: dict[str, Any], weights: Sequence[Tensor], shards: Shards, fragments: Sequence[Sequence[Fragment]]
) -> None:
    """Stages 1 to 3: a flat tensor for each group.

    Args:
        optimizer: ``state`` and ``param_groups``.
        weights: The fp32 weights of each group; written to.
        shards: The old run's state.
        fragments: What of which parameter is where in each group.
    """
    _settle_groups(optimizer["param_groups"], shards)
    for index, (flat, of_group) in enumerate(zip(weights, fragments, strict=True)):
        pieces = [piece for piece in of_group if shards.knows(piece.name)]
        for piece in pieces:
            flat[piece.place : piece.place + piece.length] = shards.read(piece.name, WEIGHT, piece.start, piece.length)
        if not pieces:
            continue
        state: dict[str, Any] = dict(shards.scalars(pieces[0].name))
        for key in shards.keys(pieces[0].name):
            state[key] = torch.zeros_like(flat)
            for piece in pieces:
                values = shards.read(piece.name, key, piece.start, piece.length)
                state[key][piece.place : piece.place + piece.length] = values
        optimizer["state"][index] = state


def _settle_groups(groups: Sequence[dict[str, Any]], shards: Shards) -> None:
    for group in groups:  # they differ by their decay alone, and a stage of a pipeline may lack one
        group.update(next(old for old in shards.groups if old["weight_decay"] == group["weight_decay"]))


def _own(scalars: Mapping[str, Any]) -> dict[str, Any]:
    """Copies: a step that parameters shared would be counted once for each of them."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in scalars.items()}


def _without_parameters(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def _is_flat(value: Any, weights: Tensor) -> bool:
    # the padding at the end of a partition may have been cut from the weights alone
    return isinstance(value, Tensor) and value.dim() == 1 and value.numel() >= weights.numel() > 0


def _mapped(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def _rank_of(file: Path) -> tuple[int, str]:
    """Order by the data-parallel rank in DeepSpeed's names, which it does not pad far enough to sort as text."""
    parts = file.name.split("zero_pp_rank_")
    return (int(parts[1].split("_")[0]) if len(parts) > 1 else 0, file.name)
