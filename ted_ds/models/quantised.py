"""Weights in 8 bits: the matrices of a model's blocks, each row with a scale of its own (torchao).

Products are still computed in the model's precision. Embeddings, norms, biases and heads stay as they are.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from torch.nn.functional import linear as torch_linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import ConfigError
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of

OLDEST = Version("0.18")
"""Version of torchao."""


def has_torchao() -> bool:
    """Whether a version that is new enough is installed."""
    try:
        return Version(version("torchao")) >= OLDEST
    except PackageNotFoundError:
        return False


def refuse_without_torchao() -> None:
    """Make sure that torchao is there, and works.

    Raises:
        ConfigError: It is not, or does not.
    """
    if not has_torchao():
        raise ConfigError(
            f"teacher.host: int8 needs torchao {OLDEST} or newer, which is not installed here: pip install "
            "'ted_ds[int8]'; or use another host"
        )
    try:
        _torchao()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"teacher.host: int8: torchao does not work here: {reason}; use another host") from error


def quantise_blocks(model: PreTrainedModel, family: Family, device: torch.device) -> None:
    """Put the matrices of a model's blocks into 8 bits, one block after the other, on ``device``.

    Raises:
        ConfigError: torchao is not installed.
    """
    refuse_without_torchao()
    torchao = _torchao()
    # it would change settings of the compiler for the student, too
    config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    for block in blocks_of(model, family):
        block.requires_grad_(False).to(device)
        _as_linear(block)
        torchao.quantize_(block, config)
        for module in block.modules():
            if type(module) is nn.Linear:
                module.__class__ = _QuantisedLinear


class _QuantisedLinear(nn.Linear):
    """A linear map by torch's own function, also where a ZeRO-3 engine has put another in its place.

    (That one, for training, transposes the weight, which torchao's have no way to do.)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch_linear(input, self.weight, self.bias)


def stored_bytes(parameter: torch.Tensor) -> int:
    """Bytes of a parameter, also of one that consists of several tensors."""
    parts: Any = getattr(parameter, "__tensor_flatten__", None)
    if parts is None:
        return parameter.numel() * parameter.element_size()
    return sum(stored_bytes(getattr(parameter, name)) for name in parts()[0])


def _torchao() -> Any:
    return importlib.import_module("torchao.quantization")  # an optional package, and slow to import


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
