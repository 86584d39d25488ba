"""How the fused losses cut their rows up: by shape and machine alone, so that a resumed run sums in the same order."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MIB = 2**20
HOST_BYTES = 512 * MIB
"""On the CPU: large enough that one more matrix product costs nothing beside its work."""
SCALED_ROWS = 4096
"""Brought to fp32 at a time to be scaled."""
HEAD_ROWS = {"cpu": 1024}
"""Of a head, multiplied at a time: a block that stays in the caches of a CPU makes its fp32 logits a quarter faster."""
GRADIENT_ROWS = 16384
"""Of the vocabulary, whose 16-bit gradient of a chunk is made before it is added up in fp32."""
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


class KeptRows(NamedTuple):
    """What :func:`kept_rows` has found."""

    rows: Tensor | None


def kept_rows(keep: Tensor) -> Tensor | None:
    """Where the flattened ``keep`` is True; None where it is everywhere."""
    rows = keep.flatten().nonzero().squeeze(-1)
    return None if rows.numel() == keep.numel() else rows


def select_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """``[*batch, last]`` as ``[kept rows, last]``; what is not kept, NaN too, is neither read nor passed a gradient."""
    flat = values.reshape(-1, values.shape[-1])
    return flat if rows is None else flat.index_select(0, rows)


def scale_rows(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``values * scale`` as ``dtype``, multiplied in fp32 at least; in the place of ``values`` where that fits.

    (A GPU would round a scale on the device to 16 bits before it multiplies 16-bit values by it, and a loss scale may
    be more than fp16 holds.)
    """
    if values.dtype not in (torch.float16, torch.bfloat16):
        scaled = values.mul_(scale)
        return scaled.to(dtype)
    result = values if values.dtype == dtype else torch.empty_like(values, dtype=dtype)
    for start in range(0, len(values), SCALED_ROWS):
        rows = slice(start, start + SCALED_ROWS)
        result[rows] = values[rows].float() * scale
    return result


def product_of_gradients(left: Tensor, right: Tensor) -> Tensor:
    """``left^T right``, a sum over tokens; in fp32 for fp16, whose sums no loss scale keeps from overflowing."""
    if left.dtype == torch.float16:
        left, right = left.float(), right.float()
    return left.T @ right


def compute_dtype(weight: Tensor) -> torch.dtype:
    """In what a product with ``weight`` is computed: autocast's precision where that is on, else the weight's own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over chunks, and exponentials, are computed in where products are computed in ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def write_logits(logits: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """``logits = states weight^T + bias``."""
    rows = HEAD_ROWS.get(logits.device.type, weight.shape[0])
    for ids in slices(weight.shape[0], rows):
        if bias is None:
            torch.mm(states, weight[ids].T, out=logits[:, ids])
        else:
            torch.addmm(bias[ids], states, weight[ids].T, out=logits[:, ids])


def add_product(total: Tensor, logits: Tensor, states: Tensor, *, is_first: bool) -> None:
    """``total += logits^T states``."""
    if total.dtype == logits.dtype:
        torch.addmm(total, logits.T, states, beta=0 if is_first else 1, out=total)
        return
    for ids in slices(total.shape[0], GRADIENT_ROWS):
        total[ids] += product_of_gradients(logits[:, ids], states)


def slices(length: int, size: int) -> Iterator[slice]:
    """What cuts so many rows into parts of ``size``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
