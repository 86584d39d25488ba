"""The linear map at the end of a block, found by what a change of it changes (``Family.output_map``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ted_ds.errors import CheckpointError
from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of
from ted_ds.models.structure.record import Specimen, inputs_of
from ted_ds.models.structure.trace import Call, Trace, are_close, first_tensor, trace
from ted_ds.models.structure.uses import reason_of

CHANGE = 0.5
"""Of the size of a map's numbers."""


def with_output_map(specimen: Specimen, family: Family) -> Family:
    """The record with the output map of blocks, or with the reason why there is none that healing could solve."""
    refused = family.refused
    try:
        if "cut" in refused:
            raise CheckpointError("it is not cut")
        if "pipeline" in refused:  # healing runs blocks by themselves, as its stages do
            raise CheckpointError(f"its blocks are not run by themselves ({refused['pipeline']})")
        return _found(specimen, family)
    except Exception as error:  # whatever a class does not expect: nothing more specific
        return replace(family, refused={**refused, "heal": reason_of(error)})


def _found(specimen: Specimen, family: Family) -> Family:
    """The record with a map that all blocks have at one place.

    Raises:
        CheckpointError: There is none.
    """
    run = specimen.run
    first = blocks_of(specimen.model, family)[0]
    why: str | None = None
    for path, norm in _candidates(run, first, specimen.parts.width):
        own = replace(family, output_map=path, norm_behind_map=norm)
        try:
            factors = [_factor(specimen.model, own, number) for number in range(specimen.num_blocks)]
            return _with_factor(specimen, own, factors)
        except CheckpointError as error:
            why = why or str(error)  # of the last one
    raise CheckpointError(why or "its blocks end with no linear map")


def _candidates(run: Trace, block: nn.Module, width: int) -> Iterator[tuple[str, str | None]]:
    """The last linear maps that a block calls, and the norm behind them, where its output is that of a norm."""
    (whole,) = run.of(block)
    prefix = f"{whole.path}."
    inside = [call for call in run.calls if call.path.startswith(prefix) and call.ended < whole.ended]
    norm = _last_norm(inside, whole)
    for call in sorted(inside, key=lambda call: -call.began):
        output = first_tensor(call.output)
        if isinstance(call.module, nn.Linear | Conv1D) and isinstance(output, Tensor) and output.shape[-1] == width:
            yield call.path.removeprefix(prefix), None if norm is None else norm.removeprefix(prefix)


def _last_norm(inside: list[Call], whole: Call) -> str | None:
    """What puts out what the block does, where that is a module with one vector or two."""
    state = first_tensor(whole.output)
    for call in inside:
        if first_tensor(call.output) is state and not list(call.module.children()):
            parameters = list(call.module.parameters())
            return call.path if parameters and all(one.dim() == 1 for one in parameters) else None
    return None


def _factor(model: PreTrainedModel, family: Family, number: int) -> float:
    """What a block's output map is multiplied by before it is added.

    Raises:
        CheckpointError: A change of the map does not change what the block puts out by as much, wherever it looks.
    """
    path = f"{family.blocks_path}.{number}.{family.output_map}"
    model = copy.deepcopy(model)
    try:
        module: Any = model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(f"its blocks differ: {path} is not there") from error
    before = _look(model, family, number)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        noise = torch.randn(module.weight.shape, generator=generator)
        module.weight.add_(CHANGE * module.weight.std() * noise)
    after = _look(model, family, number)
    if not torch.equal(before[0], after[0]):
        raise CheckpointError(f"{path} takes what hangs on what it puts out")
    change, of_sum = after[1] - before[1], after[2] - before[2]
    factor = float((change * of_sum).sum() / change.square().sum())
    if not factor or not are_close(of_sum, factor * change):
        raise CheckpointError(f"what {path} puts out is not simply added to what its block does")
    return factor


def _look(model: PreTrainedModel, family: Family, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a block's output map takes and puts out, and the sum that is the block's output, or its norm's input."""
    assert family.output_map is not None
    block = blocks_of(model, family)[number]
    run = trace(model, inputs_of(model))
    (whole,), calls = run.of(block), run.of(block.get_submodule(family.output_map))
    if len(calls) != 1:
        raise CheckpointError(f"{family.output_map} is called {len(calls)} times in a block")
    is_sum = first_tensor(whole.output)
    if family.norm_behind_map is not None:
        (norm,) = run.of(block.get_submodule(family.norm_behind_map))
        is_sum = norm.state
    inputs, outputs, is_sum = (one.flatten(0, -2) for one in (calls[0].state, first_tensor(calls[0].output), is_sum))
    return inputs, outputs, is_sum


def _with_factor(specimen: Specimen, family: Family, factors: list[float]) -> Family:
    """The record with the entry of the config that has the factor, where there is one.

    Raises:
        CheckpointError: Blocks differ in it, or no entry says it.
    """
    factor = factors[0]
    if any(abs(one - factor) > 1e-3 * abs(factor) for one in factors):
        raise CheckpointError(f"what the output maps of its blocks put out is multiplied by {factors}")
    if abs(factor - 1) < 1e-3:
        return family
    config = specimen.model.config.to_dict()
    for key, value in config.items():
        if isinstance(value, float) and abs(value - factor) < 1e-3 * abs(factor):
            return replace(family, output_factor_key=key)
    raise CheckpointError(f"{family.output_map} is multiplied by {factor:.4g} before it is added, which no entry says")
