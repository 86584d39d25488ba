"""What a model folder's files say about the model, read without torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class ModelFacts:
    """The part of ``config.json`` that a plan needs."""

    model_type: str
    num_blocks: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    labels: tuple[str, ...] | None
    """Label names by id; None where they are the meaningless LABEL_0, LABEL_1, ..."""
    num_labels: int | None
    """None where the config does not say."""
    architectures: tuple[str, ...]


def read_model_facts(folder: Path) -> ModelFacts:
    """Read ``config.json`` and make sure that the weight files are whole.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json here; give a transformers model folder")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        facts = _facts(config)
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a transformers model config ({error!r})") from error
    for weights in weight_files(folder):
        _check_whole(weights)
    return facts


def _facts(config: dict[str, Any]) -> ModelFacts:
    def first(*names: str) -> Any:
        return next(config[name] for name in names if config.get(name) is not None)

    try:
        id2label = {int(index): name for index, name in (config.get("id2label") or {}).items()}
        labels = tuple(id2label[index] for index in range(len(id2label)))
        classifies = any("SequenceClassification" in name for name in config.get("architectures") or ())
        return ModelFacts(
            model_type=config["model_type"],
            num_blocks=first("num_hidden_layers", "n_layer"),
            hidden_size=first("hidden_size", "n_embd"),
            vocab_size=config["vocab_size"],
            max_positions=first("max_position_embeddings", "n_positions"),
            labels=labels if labels and any(name != f"LABEL_{i}" for i, name in enumerate(labels)) else None,
            num_labels=len(labels) or (2 if classifies else None),  # transformers leaves its default of two out
            architectures=tuple(config.get("architectures") or ()),
        )
    except StopIteration as error:
        raise KeyError("depth, width or longest sequence is missing") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a model: those its index names, else ``model*.safetensors``.

    (Some hub folders hold the same weights once more in another naming.)

    Raises:
        CheckpointError: There are none, or the index is damaged or names a missing file.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = sorted(folder / name for name in names)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: damaged ({error!r}); copy it again") from error
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors weights here; other formats are not loaded")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, but {index.name} names it")
    return files


def _check_whole(file: Path) -> None:
    size = file.stat().st_size
    try:
        with file.open("rb") as weights:
            (header_size,) = struct.unpack("<Q", weights.read(8))
            if not 0 < header_size <= min(size, MAX_HEADER_BYTES):
                raise ValueError("impossible header size")
            header = json.loads(weights.read(header_size))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error})") from error
    if size != 8 + header_size + end:
        raise CheckpointError(
            f"{file}: {size} bytes, but its header describes {8 + header_size + end}; it is damaged: copy it again"
        )
