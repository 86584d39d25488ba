"""Cut a student out of a teacher: a new model folder that holds some of the teacher's blocks, or some of each.

Works on the files alone, tensor by tensor, so a teacher larger than memory can be cut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.models.companions import (
    Origins,
    copy_papers,
    copy_tokenizer,
)
from ted_ds.models.cut_config import config_of_blocks, query_factor, refuse_other_blocks, refuse_other_widths
from ted_ds.models.family import Family, path_in_body, prefixes
from ted_ds.models.files import GENERATION_CONFIG_FILE
from ted_ds.models.folder import CONFIG_FILE, WEIGHTS_FILE
from ted_ds.models.local_paths import without_local_paths
from ted_ds.models.narrowing import KeptUnits, narrowed
from ted_ds.models.tensor_files import weight_files
from ted_ds.models.units import narrowed_config


def cut(
    teacher: Path,
    student: Path,
    *,
    blocks: Sequence[int] | Mapping[str, Sequence[int]],
    family: Family,
    origins: Origins,
    units: KeptUnits | None = None,
) -> None:
    """Write a model folder ``student`` with the given blocks of ``teacher`` (numbered from 0) and all else of it.

    Those of an encoder-decoder are given by stack, as in :attr:`~ted_ds.models.family.Family.stacks`. All else is the
    other weights, the config, and what goes with them (:mod:`ted_ds.models.companions`): of ``origins``, as the teacher
    may itself be made by this run. Each block does what it did, whatever its place: see
    :mod:`ted_ds.models.cut_config`. Of blocks and all else there are only the ``units`` that are kept, where these are
    given (:mod:`ted_ds.models.narrowing`).

    Raises:
        CheckpointError: The teacher has no such blocks, one of them would do something else in the student, or no
            model has these units.
    """
    by_stack = blocks if isinstance(blocks, Mapping) else {"": blocks}
    config = without_local_paths(json.loads((teacher / CONFIG_FILE).read_text(encoding="utf-8")))
    cut_config = config
    for stack, of_stack in family.stacks.items():
        try:
            cut_config = config_of_blocks(cut_config, by_stack[stack], of_stack)
        except CheckpointError as error:
            raise CheckpointError(f"{teacher}: {error}") from error
    for stack, of_stack in family.stacks.items():
        refuse_other_blocks(config, cut_config, by_stack[stack], of_stack, where=teacher)
    if units is not None:
        cut_config = narrowed_config(cut_config, family, units.after)
    student.mkdir(parents=True, exist_ok=True)
    (student / CONFIG_FILE).write_text(json.dumps(cut_config, indent=2) + "\n", encoding="utf-8")
    if (teacher / GENERATION_CONFIG_FILE).is_file():
        shutil.copyfile(teacher / GENERATION_CONFIG_FILE, student / GENERATION_CONFIG_FILE)
    copy_tokenizer(origins.teacher, student)
    copy_papers(origins, student)
    weights = dict(_cut_weights(teacher, config, by_stack, family, units))
    for stack, of_stack in family.stacks.items():
        last = of_stack.block_of_layers(cut_config)[-1]
        if not any(f"{_marker(of_stack)}{last}." in f".{name}" for name in weights):
            raise CheckpointError(
                f"{teacher}: no weights of block {by_stack[stack][-1]} found; cut from a complete model folder"
            )
    if units is not None:
        refuse_other_widths(cut_config, {name: tuple(one.shape) for name, one in weights.items()}, teacher)
    save_file(weights, student / WEIGHTS_FILE, metadata={"format": "pt"})


def _marker(family: Family) -> str:
    # checkpoints of a bare body lack the first part of the path ("bert."), so compare without it
    return f".{family.path_in_body(family.blocks_path)}."


def _cut_weights(
    teacher: Path,
    config: Mapping[str, Any],
    blocks: Mapping[str, Sequence[int]],
    family: Family,
    units: KeptUnits | None,
) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(teacher):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                stacks = family.stacks.items()
                own = next(((key, one) for key, one in stacks if _marker(one) in f".{name}"), ("", family))
                chosen = blocks.get(own[0], ())
                for own_name, weight in _cut_weight(name, weights, config, chosen, own[1]):
                    yield own_name, weight if units is None else narrowed(name, weight, units, family)


def _cut_weight(
    name: str, weights: Any, config: Mapping[str, Any], blocks: Sequence[int], family: Family
) -> Iterator[tuple[str, Tensor]]:
    """A tensor of a file under each name it has in the student; none where the student lacks it."""
    marker = _marker(family)
    # it belongs to the first block, and does not go without it
    of_first = f".{path_in_body(family.behind_first_block)}." if family.behind_first_block else ""
    if of_first and blocks[0] != 0 and of_first in f".{name}":
        return
    before, _, after = f".{name}".partition(marker)
    number, _, rest = after.partition(".")
    if not number.isdigit():  # transformers also writes what all blocks have alike as a block's, without a number
        yield name, weights.get_tensor(name)
        return
    if number == "0" and rest.startswith(prefixes(family.parts_of_first_block)):
        yield f"{before}{marker}0.{rest}"[1:], weights.get_tensor(name)  # whichever block is the first now
        return
    if family.num_shared_key is not None:  # more or fewer passes through the same weights
        places = [int(number)] if int(number) in family.block_of_layers(config) else []
    else:
        places = [new for new, old in enumerate(blocks) if old == int(number)]
    for new in places:
        weight = weights.get_tensor(name)
        if new != places[0]:  # a file is mapped, and a repeated block trains by itself
            weight = weight.clone()
        if rest in family.fused_queries:
            weight = _scale_queries(weight, query_factor(config, int(number), new, family))
        yield f"{before}{marker}{new}.{rest}"[1:], weight


def _scale_queries(fused: Tensor, factor: float) -> Tensor:
    """``[..., queries, keys and values]`` with scaled queries, multiplied in fp32 at least."""
    if factor == 1:
        return fused
    queries, others = fused.tensor_split((fused.shape[-1] // 3,), dim=-1)
    exact = torch.promote_types(fused.dtype, torch.float32)
    return torch.cat([(queries.to(exact) * factor).to(fused.dtype), others], dim=-1)
