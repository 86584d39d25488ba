"""Filtered states as bytes: one of each matched layer and token, in 16 bits, or in 8 with a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ted_ds.planning.cache_size import SCALE_BYTES, STATE_BYTES

INT8_MAX = 127


def size_of_states(shape: Sequence[int], precision: str) -> int:
    """The bytes of states ``[layers, tokens, dim]``."""
    layers, tokens, dim = shape
    return layers * tokens * (dim * STATE_BYTES[precision] + (SCALE_BYTES if precision == "int8" else 0))


def pack_states(states: Float[Tensor, "layers tokens dim"], precision: str) -> bytes:
    """Their bytes."""
    if precision == "bf16":
        return as_bytes(states.bfloat16().view(torch.int16))
    states = states.float()
    scales = states.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    return as_bytes(scales) + as_bytes((states / scales).round().to(torch.int8))


def unpack_states(
    stored: np.ndarray[Any, Any], shape: tuple[int, int, int], precision: str
) -> Float[Tensor, "layers tokens dim"]:
    """States in fp32 or bf16 of so many bytes."""
    if precision == "bf16":
        return torch.from_numpy(stored.view(np.int16).copy()).view(torch.bfloat16).reshape(shape)
    layers, tokens, _ = shape
    end = layers * tokens * SCALE_BYTES
    scales = torch.from_numpy(stored[:end].view(np.float32).copy()).reshape(layers, tokens, 1)
    return torch.from_numpy(stored[end:].view(np.int8).copy()).reshape(shape) * scales


def as_bytes(values: Tensor) -> bytes:
    """As they are in memory."""
    return values.cpu().contiguous().numpy().tobytes()
