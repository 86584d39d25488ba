"""Weights in 8 bits: the matrices of a model's blocks, each row with a scale of its own (torchao).

Products are still computed in the model's precision. Embeddings, norms, biases and heads stay as they are.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import ConfigError
from ted_ds.models.families import Family


def has_torchao() -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec("torchao") is not None


def refuse_without_torchao() -> None:
    """Make sure that torchao is there.

    Raises:
        ConfigError: It is not.
    """
    if not has_torchao():
        raise ConfigError(
            "teacher.host: int8 needs torchao, which is not installed here: pip install 'ted_ds[int8]'; or use another "
            "host"
        )


def quantise_blocks(model: PreTrainedModel, family: Family, device: torch.device) -> None:
    """Put the matrices of a model's blocks into 8 bits, one block after the other, on ``device``.

    Raises:
        ConfigError: torchao is not installed.
    """
    refuse_without_torchao()
    torchao: Any = importlib.import_module("torchao.quantization")  # an optional package, and slow to import
    for block in family.blocks(model):
        block.requires_grad_(False).to(device)
        _as_linear(block)
        torchao.quantize_(block, torchao.Int8WeightOnlyConfig())


def stored_bytes(parameter: torch.Tensor) -> int:
    """Bytes of a parameter, also of one that consists of several tensors."""
    parts: Any = getattr(parameter, "__tensor_flatten__", None)
    if parts is None:
        return parameter.numel() * parameter.element_size()
    return sum(stored_bytes(getattr(parameter, name)) for name in parts()[0])


def _as_linear(module: nn.Module) -> None:
    """Turn GPT-2's transposed maps into the linear maps they are, which torchao knows."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D):
            with torch.device("meta"):
                linear = nn.Linear(child.nx, child.nf)
            linear.weight = nn.Parameter(child.weight.t().contiguous(), requires_grad=False)
            linear.bias = child.bias
            setattr(module, name, linear)
        else:
            _as_linear(child)
