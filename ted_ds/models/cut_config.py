"""What the config of a cut model says, so that each block does what it did under another number.

Configs say what blocks do in many ways. Lists with an entry for each block, lists of blocks, and the number of the
first that differ are brought over; what transformers works out of other entries (a window from some block on) is
written down. Whatever else hangs on a block's number is found by comparing the blocks that both configs come to, and
refused: no list of model types knows them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ted_ds.errors import CheckpointError, counted
from ted_ds.models.config_build import parsed_config
from ted_ds.models.family import Family

ABOUT_BLOCKS = re.compile(r"layer|block|_idx|_indices")
"""In the names of entries that are lists of or over blocks."""
Value = bool | int | float | str | None


def config_of_blocks(config: Mapping[str, Any], blocks: Sequence[int], family: Family) -> dict[str, Any]:
    """The config of a model of some of the blocks, numbered from 0, of one with this ``config.json``.

    Raises:
        CheckpointError: There is no such block, or one cannot be repeated.
    """
    said = {**parsed_config(config).to_dict(), **{key: value for key, value in config.items() if value is not None}}
    depth_key, depth = family.entry(config if not family.is_stack else said, "num_hidden_layers")
    if max(blocks) >= depth:
        raise CheckpointError(
            f"block {max(blocks)} does not exist (the model has {counted(depth, 'block')}); use 0..{depth - 1}"
        )
    result = {**config, depth_key: len(blocks)}
    for key, value in said.items():
        if key in family.first_blocks_keys and isinstance(value, int):
            result[key] = sum(block < value for block in blocks)
        elif ABOUT_BLOCKS.search(key) and isinstance(value, list | tuple):
            result[key] = _of_blocks(value, blocks, depth)
    step = said.get(family.sparse_step_key or "", 1)
    if step > 1 and family.sparse_step_key is not None and family.dense_blocks_key is not None:
        listed = said.get(family.dense_blocks_key) or ()
        dense = [new for new, old in enumerate(blocks) if old in listed or (old + 1) % step]
        result |= {family.sparse_step_key: 1, family.dense_blocks_key: dense}
    of_first = family.behind_first_block_key
    if of_first is not None and config.get(of_first):
        if 0 in blocks[1:]:
            raise CheckpointError(
                f"block 0 of this {config['model_type']} has a part behind it ({of_first}: {config[of_first]}) that "
                "only the first block of a model can have; use it once, and first"
            )
        if blocks[0] != 0:
            result[of_first] = 0
    return result


def _of_blocks(values: Sequence[Any], blocks: Sequence[int], depth: int) -> list[Any]:
    are_blocks = bool(values) and all(type(value) is int and 0 <= value < depth for value in values)
    are_blocks = are_blocks and list(values) == sorted(set(values))
    if len(values) == depth and not (are_blocks and depth > 2):  # of two entries, 0 and 1 are more likely flags
        return [values[block] for block in blocks]
    return [new for new, old in enumerate(blocks) if old in values] if are_blocks else [*values]


def query_factor(config: Mapping[str, Any], old: int, new: int, family: Family) -> float:
    """What a block's queries are multiplied by to make up for its new number (:attr:`Family.inverse_number_key`)."""
    key = family.inverse_number_key
    return (new + 1) / (old + 1) if key is not None and config.get(key) else 1.0


def refuse_other_blocks(
    config: Mapping[str, Any], cut_config: Mapping[str, Any], blocks: Sequence[int], family: Family, *, where: Path
) -> None:
    """Make sure that each block of the cut model is what it was, from what transformers builds of both configs.

    Raises:
        CheckpointError: One is not.
    """
    before, after = (_skeleton(one, family) for one in (config, cut_config))
    numbers, own_numbers = (family.block_of_layers(parsed_config(one).to_dict()) for one in (config, cut_config))
    for new, old in enumerate(blocks):
        factor = query_factor(config, old, new, family)
        number, own_number = numbers[old], own_numbers[new]
        of_first = (family.parts_of_first_block, family.flags_of_first_block)
        difference = _difference(before[number], after[own_number], old, new, factor, of_first)
        if family.num_shared_key is not None and number != own_number:
            difference = f"it would be a pass through weights {own_number}, not {number}"
        if difference is not None:
            raise CheckpointError(
                f"{where}: block {old} of this {config['model_type']} would not be itself as block {new} of a student: "
                f"{difference}. Its config.json decides that by the block's number, which cannot be brought over; "
                "choose other student.from_teacher.blocks, or give student.path"
            )


def refuse_other_widths(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Make sure that transformers builds a body with parameters of these shapes, by their names in files.

    Raises:
        CheckpointError: One is of another shape.
    """
    with torch.device("meta"):
        body = AutoModel.from_config(parsed_config(config))
    for name, parameter in body.named_parameters():
        own = next((one for one in (f"{body.base_model_prefix}.{name}", name) if one in shapes), None)
        if own is not None and shapes[own] != tuple(parameter.shape):
            raise CheckpointError(
                f"{where}: {own} would be {list(shapes[own])} in the student, where this {config['model_type']} has "
                f"{list(parameter.shape)}; leave hidden_size, intermediate_size and heads out of student.from_teacher"
            )


def _skeleton(config: Mapping[str, Any], family: Family) -> nn.ModuleList:
    """The blocks, without memory of their own."""
    with torch.device("meta"):
        body = AutoModel.from_config(parsed_config(config))
    blocks = body.get_submodule(family.path_in_body(family.blocks_path))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _difference(
    before: nn.Module,
    after: nn.Module,
    old: int,
    new: int,
    query_factor: float,
    of_first: tuple[Sequence[str], Sequence[str]],
) -> str | None:
    """What of a block is not as it was, but for its own number, in words.

    And but for modules and flags ``of_first``, with which the first block computes something for all of them.
    """
    parts, own_parts = (dict(block.named_modules()) for block in (before, after))
    for name in (name for name in {**parts, **own_parts} if name not in of_first[0]):
        part, own = parts.get(name), own_parts.get(name)
        if type(part) is not type(own):
            return f"{name} would be {_kind(own)}, not {_kind(part)}"
        facts, own_facts = _facts(part), _facts(own)
        for key in (key for key in {**facts, **own_facts} if key not in of_first[1]):
            value, own_value = facts.get(key), own_facts.get(key)
            if key == "scaling" and isinstance(value, float) and isinstance(own_value, float):
                is_same = math.isclose(own_value * query_factor, value)
            else:
                is_same = value == own_value or (value, own_value) == (old, new)
            if not is_same:
                return f"{name or 'it'} would have {key} {own_value}, not {value}"
    return None


def _kind(part: nn.Module | None) -> str:
    return "missing" if part is None else f"a {type(part).__name__}"


def _facts(part: Any) -> dict[str, Any]:
    plain = {key: value for key, value in vars(part).items() if isinstance(value, Value) and not key.startswith("_")}
    shapes = {name: tuple(one.shape) for name, one in part.named_parameters(recurse=False)}
    return {**plain, **shapes}
