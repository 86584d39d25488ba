"""Cut a student out of a teacher: a new model folder that holds some of the teacher's blocks.

Works on the files alone, tensor by tensor, so a teacher larger than memory can be cut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.models.companions import (
    Origins,
    copy_papers,
    copy_tokenizer,
    without_local_paths,
)
from ted_ds.models.families import Family
from ted_ds.models.files import GENERATION_CONFIG_FILE, weight_files
from ted_ds.models.folder import CONFIG_FILE

DEPTH_KEYS = ("num_hidden_layers", "n_layer")


def cut(teacher: Path, student: Path, *, blocks: Sequence[int], family: Family, origins: Origins) -> None:
    """Write a model folder ``student`` with the given blocks of ``teacher`` (numbered from 0) and all else of it.

    That is the other weights, the config, and what goes with them (:mod:`ted_ds.models.companions`): of ``origins``,
    as the teacher may itself be made by this run.

    Raises:
        CheckpointError: The teacher has no such blocks.
    """
    config = without_local_paths(json.loads((teacher / CONFIG_FILE).read_text(encoding="utf-8")))
    student.mkdir(parents=True, exist_ok=True)
    (student / CONFIG_FILE).write_text(json.dumps(_cut_config(config, blocks), indent=2) + "\n", encoding="utf-8")
    if (teacher / GENERATION_CONFIG_FILE).is_file():
        shutil.copyfile(teacher / GENERATION_CONFIG_FILE, student / GENERATION_CONFIG_FILE)
    copy_tokenizer(origins.teacher, student)
    copy_papers(origins, student)
    weights = dict(_cut_weights(teacher, blocks, family))
    if not any(f"{_marker(family)}{len(blocks) - 1}." in f".{name}" for name in weights):
        raise CheckpointError(f"{teacher}: no weights of block {blocks[-1]} found; cut from a complete model folder")
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})


def _cut_config(config: dict[str, Any], blocks: Sequence[int]) -> dict[str, Any]:
    depth_key = next(key for key in DEPTH_KEYS if key in config)
    result = {**config, depth_key: len(blocks)}
    if config.get("layer_types"):  # one entry per block
        result["layer_types"] = [config["layer_types"][block] for block in blocks]
    return result


def _marker(family: Family) -> str:
    # checkpoints of a bare body lack the first part of the path ("bert."), so compare without it
    return f".{family.blocks_path.split('.', 1)[1]}."


def _cut_weights(teacher: Path, blocks: Sequence[int], family: Family) -> Iterator[tuple[str, Tensor]]:
    new_number = {old: new for new, old in enumerate(blocks)}
    marker = _marker(family)
    for file in weight_files(teacher):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                before, found, after = f".{name}".partition(marker)
                if not found:
                    yield name, weights.get_tensor(name)
                    continue
                number, _, rest = after.partition(".")
                if int(number) in new_number:
                    yield f"{before}{marker}{new_number[int(number)]}.{rest}"[1:], weights.get_tensor(name)
