"""Tiny models with quantised weights, made without the packages that make real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8_BLOCK = 16
LARGEST_FP8 = 448.0
ZERO = 8
"""What stands for 0 in 4 bits."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of the numbers in a word."""


def rewrite(folder: Path, settings: dict[str, Any], matrix: Callable[[str, Tensor], dict[str, Tensor]]) -> Path:
    """Put what ``matrix`` makes of each matrix of a block in its place, and ``settings`` into the config."""
    state: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        is_matrix = ".layers." in name and weight.dim() == 2
        state |= matrix(name, weight) if is_matrix else {name: weight}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))
    return folder


def to_fp8(folder: Path) -> Path:
    """The matrices of a model's blocks in 8-bit floating point, with a scale for each 16 x 16 of them."""

    def matrix(name: str, weight: Tensor) -> dict[str, Tensor]:
        rows, columns = (size // FP8_BLOCK for size in weight.shape)
        blocks = weight.reshape(rows, FP8_BLOCK, columns, FP8_BLOCK)
        scales = blocks.abs().amax((1, 3)) / LARGEST_FP8
        quantised = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        return {name: quantised, f"{name}_scale_inv": scales}

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
    return rewrite(folder, settings, matrix)


def to_gptq(folder: Path, **settings: Any) -> Path:
    """The matrices of a model's blocks in 4 bits, rounded to the nearest, as GPTQ lays them out."""

    def matrix(name: str, weight: Tensor) -> dict[str, Tensor]:
        module = name.removesuffix(".weight")
        numbers, scales = in_4_bits(weight)
        return {
            f"{module}.qweight": in_words(numbers.t()).t().contiguous(),
            f"{module}.qzeros": in_words(torch.full(scales.shape, ZERO - 1)),  # by one less, as it was first written
            f"{module}.scales": scales,
            f"{module}.g_idx": torch.zeros(weight.shape[1], dtype=torch.int32),
        }

    return rewrite(
        folder, {"quant_method": "gptq", "bits": 4, "group_size": -1, "backend": "torch", **settings}, matrix
    )


def to_awq(folder: Path) -> Path:
    """The same as AWQ lays it out."""

    def matrix(name: str, weight: Tensor) -> dict[str, Tensor]:
        module = name.removesuffix(".weight")
        numbers, scales = in_4_bits(weight)
        zeros = torch.full(scales.shape, ZERO)
        packed = {one: in_words(given, AWQ_ORDER) for one, given in (("qweight", numbers), ("qzeros", zeros))}
        return {f"{module}.{one}": tensor for one, tensor in {**packed, "scales": scales}.items()}

    settings = {"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": True, "version": "gemm"}
    return rewrite(folder, {**settings, "backend": "torch_awq"}, matrix)


def in_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a matrix ``[out, in]``: numbers from 1 to 15, ``[in, out]``, 8 for 0, and their scales, ``[1, out]``."""
    scales = (weight.abs().amax(1, keepdim=True).t() / (ZERO - 1)).half()
    return (weight.t() / scales.float()).round().int() + ZERO, scales


def in_words(numbers: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """Eight numbers of a row in each, the first in the lowest bits."""
    words = torch.stack([numbers[:, place::8].long() << 4 * bits for bits, place in enumerate(order)]).sum(0)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def to_nf4(folder: Path) -> Path:
    """The layout of a model of bitsandbytes in 4 bits, whose numbers mean nothing."""

    def matrix(name: str, weight: Tensor) -> dict[str, Tensor]:
        return {
            name: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8),
            f"{name}.absmax": torch.ones(weight.numel() // 64),
            f"{name}.quant_map": torch.zeros(16),
            f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        }

    return rewrite(folder, {"quant_method": "bitsandbytes", "load_in_4bit": True}, matrix)
