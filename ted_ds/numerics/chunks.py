"""How the fused losses cut their rows up: by shape and machine alone, so that a resumed run sums in the same order."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

MIB = 2**20
HOST_BYTES = 512 * MIB
"""On the CPU: large enough that one more matrix product costs nothing beside its work."""
LEAST_ROWS = 64
"""Fewer leave a matrix product waiting for its weights."""


@functools.cache
def chunk_bytes(device: torch.device) -> int:
    """What a chunk of logits may take on a device.

    Not what is free at the moment: the order of summation, and with it the last bits, would hang on chance.
    """
    if device.type != "cuda":
        return HOST_BYTES
    total: int = torch.cuda.get_device_properties(device).total_memory
    return max(64 * MIB, min(total // 64, 1024 * MIB))


def rows_per_chunk(num_rows: int, bytes_per_row: int, max_bytes: int) -> int:
    """Rows of a chunk of at most ``max_bytes`` (or ``LEAST_ROWS``), where all chunks are about as large."""
    most = max(LEAST_ROWS, max_bytes // max(bytes_per_row, 1))
    num_chunks = max(1, -(-num_rows // most))
    size = max(1, -(-num_rows // num_chunks))
    # matrix products like full tiles
    return min(-(-size // LEAST_ROWS) * LEAST_ROWS, most) if num_chunks > 1 else size


def kept_rows(keep: Tensor) -> Tensor | None:
    """Where the flattened ``keep`` is True; None where it is everywhere."""
    rows = keep.flatten().nonzero().squeeze(-1)
    return None if rows.numel() == keep.numel() else rows


def select_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """``[*batch, last]`` as ``[kept rows, last]``; what is not kept, NaN too, is neither read nor passed a gradient."""
    flat = values.reshape(-1, values.shape[-1])
    return flat if rows is None else flat.index_select(0, rows)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """In what a product with ``weight`` is computed: autocast's precision where that is on, else the weight's own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype
