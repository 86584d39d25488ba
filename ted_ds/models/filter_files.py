"""Filters on disk: their weights and what they were trained for, loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.layer_map import Layer

FILE_NAME = "filters.safetensors"


def save_filters(folder: Path, state: dict[str, Tensor], *, layers: tuple[Layer, ...], dim: int, kind: str) -> None:
    """Write the bank's whole weights and its description."""
    description = {"layers": list(layers), "dim": dim, "kind": kind}
    save_file(state, folder / FILE_NAME, metadata={"filters": json.dumps(description)})


def load_filters(folder: Path, *, layers: tuple[Layer, ...], hidden_size: int, dim: int, kind: str) -> FilterBank:
    """Read a bank that was trained for exactly these layers.

    Raises:
        CheckpointError: The file is missing or damaged, or was made for other layers, widths or kind.
    """
    file = folder / FILE_NAME
    wanted = {"layers": list(layers), "dim": dim, "kind": kind}
    try:
        with safe_open(file, framework="pt") as weights:
            found = json.loads(weights.metadata()["filters"])
            state = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no filters can be read here ({error}); run Stage I: ted-ds filters") from error
    if found != wanted:
        raise CheckpointError(f"{file}: these filters were made for {found}, the recipe asks for {wanted}")
    bank = FilterBank(layers, hidden_size, dim, kind=kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in bank.state_dict().items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise CheckpointError(
            f"{file}: its tensors do not fit a model of width {hidden_size}, or are named as by an earlier version; "
            f"remove {folder} and learn them anew: ted-ds filters"
        )
    bank.load_state_dict(state)
    return bank
