"""Adapters beside the linear maps of a family's blocks, tried without peft: added to what maps put out, and merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import CheckpointError
from ted_ds.models.adapter_targets import linear_maps, may_be_adapted
from ted_ds.models.family import Family
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.trace import are_close
from ted_ds.models.structure.training import weights_used_elsewhere

RANK = 2


def refuse_other_maps(specimen: Specimen, family: Family) -> None:
    """What is added to the output of each linear map of the blocks does what its weight would with that, and learns.

    Raises:
        CheckpointError: It does not, or blocks use weights while the modules they belong to do not run.
    """
    used = weights_used_elsewhere(copy.deepcopy(specimen.model), inputs_of(specimen.model))
    of_blocks = [name for name in used if family.block_number(name) is not None]
    if of_blocks:  # and on a GPU a kernel may so use those of linear maps
        raise CheckpointError(
            f"{of_blocks[0]} is used while the module it belongs to does not run, when an adapter beside it is not seen"
        )
    paths = [*_linear_maps(specimen.model, family)]
    if not paths:
        raise CheckpointError("its blocks have no linear map")
    # in fp64 as well: behind many blocks a difference of rounding may choose another expert
    if not any(_is_the_same(specimen, paths, dtype) for dtype in (torch.float32, torch.float64)):
        raise CheckpointError("what is added to the output of its linear maps is not what their weights add to it")


def _linear_maps(model: PreTrainedModel, family: Family) -> Iterator[str]:
    """The paths of the maps that may have an adapter.

    Raises:
        CheckpointError: What is called so in files is none.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or not name.endswith(".weight") or family.block_number(name) is None:
            continue
        path, within = name.removesuffix(".weight"), family.name_in_block(name).removesuffix(".weight")
        if not linear_maps({within: (*parameter.shape,)}) or not may_be_adapted(within, family):
            continue
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear | Conv1D):
            raise CheckpointError(f"{within} of its blocks belongs to a {type(module).__name__}, no linear map")
        yield path


def _is_the_same(specimen: Specimen, paths: list[str], dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    added, merged = (_copied(specimen.model, dtype) for _ in range(2))
    learning: dict[str, list[nn.Parameter]] = {}
    for path in paths:
        module: Any = merged.get_submodule(path)
        is_transposed = isinstance(module, Conv1D)
        into, out = module.weight.shape if is_transposed else module.weight.shape[::-1]
        shapes = ((into, RANK), (RANK, out))
        pair = [nn.Parameter((torch.randn(one, generator=generator) * one[0] ** -0.5).to(dtype)) for one in shapes]
        added.get_submodule(path).register_forward_hook(_adding(*pair))
        with torch.no_grad():
            change = pair[0] @ pair[1]
            module.weight.add_(change if is_transposed else change.t())
        learning[path] = pair
    logits = added(**inputs_of(added)).logits
    logits.square().mean().backward()
    for path, pair in learning.items():
        if any(one.grad is None for one in pair):
            raise CheckpointError(f"an adapter beside {path} would learn nothing")
    with torch.no_grad():
        return are_close(logits.detach(), merged(**inputs_of(merged)).logits)


def _adding(first: Tensor, second: Tensor) -> Callable[..., Any]:
    return lambda _module, inputs, output: output + (inputs[0] @ first) @ second


def _copied(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype)
