"""The last linear map of a block, as a matrix and back (:class:`ted_ds.models.family_traits.OutputMaps`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of, has_part


@dataclass(frozen=True)
class OutputMap:
    """Of a live block, which puts out ``rest + factor * map(inputs)``, or what a norm makes of that sum."""

    module: Any
    """``nn.Linear``, or transformers' ``Conv1D``, which has its matrix transposed."""
    norm: nn.Module | None
    factor: float

    @property
    def has_bias(self) -> bool:
        """Whether the map has one."""
        return self.module.bias is not None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the map."""
        return list(self.module.parameters())

    def named_in(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the map and of the norm behind it, by their names in the model."""
        own = [*self.parameters, *([] if self.norm is None else self.norm.parameters())]
        ids = {id(parameter) for parameter in own}
        return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}

    @property
    def matrix(self) -> Float[Tensor, "targets inputs"]:
        """The map in fp64, its bias in the last column where it has one; its parameters must be whole."""
        weight = self.module.weight.detach().double()
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        return torch.cat([weight, self.module.bias.detach().double().unsqueeze(1)], dim=1) if self.has_bias else weight

    @torch.no_grad()
    def put(self, matrix: Float[Tensor, "targets inputs"]) -> None:
        """Take another matrix, rounded once to the precision of the parameters; these must be whole."""
        weight = matrix[:, :-1] if self.has_bias else matrix
        self.module.weight.copy_(weight.T if isinstance(self.module, Conv1D) else weight)
        if self.has_bias:
            self.module.bias.copy_(matrix[:, -1])


def output_map_of(model: PreTrainedModel, family: Family, number: int) -> OutputMap | None:
    """That of block ``number``, from 0; None where a module behind the block changes what it puts out."""
    behind_first = family.behind_first_block
    if family.output_map is None or (number == 0 and behind_first is not None and has_part(model, behind_first)):
        return None
    config, block = model.config.to_dict(), blocks_of(model, family)[number]
    norm = family.norm_behind(config)
    return OutputMap(
        block.get_submodule(family.output_map),
        None if norm is None else block.get_submodule(norm),
        family.output_factor(config),
    )
