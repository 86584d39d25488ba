"""Tiny models with quantised weights, made without the packages that make real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8_BLOCK = 16
LARGEST_FP8 = 448.0


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


def to_gptq(folder: Path, *, bits: int = 4, **settings: Any) -> Path:
    """The layout of a GPTQ model, whose numbers mean nothing."""

    def matrix(name: str, weight: Tensor) -> dict[str, Tensor]:
        module = name.removesuffix(".weight")
        out, into = weight.shape
        return {
            f"{module}.qweight": torch.zeros(into * bits // 32, out, dtype=torch.int32),
            f"{module}.qzeros": torch.zeros(1, out * bits // 32, dtype=torch.int32),
            f"{module}.scales": torch.ones(1, out, dtype=torch.float16),
            f"{module}.g_idx": torch.zeros(into, dtype=torch.int32),
        }

    return rewrite(folder, {"quant_method": "gptq", "bits": bits, "group_size": -1, **settings}, matrix)


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
