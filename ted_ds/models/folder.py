"""Whether a path is a model folder that ted_ds reads; if not, what it is instead, and what to do. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.families import KNOWN_TYPES, TEXT_TYPE_IN
from ted_ds.models.model_file import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
ORIGINAL = "give the transformers folder (config.json, *.safetensors) it was made from"
TO_SAFETENSORS = (
    "load it with transformers where you trust it and write it anew: "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER), with the Auto class of your task"
)
OTHER_FILES: Mapping[str, str] = {
    ".gguf": f"GGUF weights, which ted_ds does not read; {ORIGINAL}",
    ".onnx": f"an ONNX graph, which ted_ds does not read; {ORIGINAL}",
    ".h5": f"TensorFlow weights, which ted_ds does not read; {ORIGINAL}",
    ".msgpack": f"Flax weights, which ted_ds does not read; {ORIGINAL}",
    ".bin": f"pickled weights, which could run any code and are not loaded; {TO_SAFETENSORS}",
    ".pt": f"pickled weights, which could run any code and are not loaded; {TO_SAFETENSORS}",
    ".pth": f"pickled weights, which could run any code and are not loaded; {TO_SAFETENSORS}",
}
"""Weights in other formats, the safest first: a folder may have several."""
NUM_SHOWN = 3


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model, whose code is transformers' own.

    Raises:
        CheckpointError: The folder is no such model.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: {_without_config(folder)}")
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a transformers model config ({error!r}); copy it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{file}: not a transformers model config (it has no model_type); give the folder of a transformers model"
        )
    own_code = _own_code(config)
    if model_type in TEXT_TYPE_IN:
        raise CheckpointError(
            f"{file}: a {model_type} reads more than text; write its language model, a {TEXT_TYPE_IN[model_type]}, "
            "into a folder of its own, as docs/students.md shows, and give that"
        )
    if own_code and model_type not in KNOWN_TYPES:
        raise CheckpointError(
            f"{file}: model type {model_type!r} is not supported (it brings code of its own, {own_code}, which ted_ds "
            f"never runs); ted_ds knows {', '.join(KNOWN_TYPES)}, and finds others that are transformers' own"
        )
    if own_code:
        raise CheckpointError(
            f"{file}: auto_map names code of its own ({own_code}), which ted_ds never runs, and without it this may be "
            f"another model; where it is a plain {model_type}, remove auto_map, else use another model"
        )
    _refuse_adapter(folder)
    return config


def no_weights(folder: Path) -> str:
    """What a folder without ``model.safetensors`` or its index has instead, and what to do."""
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    parts = [name for name in others if name.startswith("model-") and "-of-" in name]
    if parts:
        return f"{parts[0]} is one of several files, but {INDEX_FILE}, which lists them, is missing; copy it, too"
    if others:
        return (
            f"no {WEIGHTS_FILE} or {INDEX_FILE} here, but {_listed(others)}; if that is the whole model in "
            f"transformers' names, rename it to {WEIGHTS_FILE}"
        )
    for suffix, meaning in OTHER_FILES.items():
        found = sorted(file.name for file in folder.glob(f"*{suffix}") if file.name != "training_args.bin")
        if found:
            return f"no *.safetensors weights here; {_listed(found)}: {meaning}"
    return (
        f"no *.safetensors weights here, only {CONFIG_FILE}; ted_ds starts from trained weights: copy them here, or "
        "cut the student out of the teacher (student.from_teacher)"
    )


def no_folder(path: Path) -> str:
    """What a path is that should be a model folder and is not."""
    if not path.exists():
        return "no such model folder"
    if path.suffix in OTHER_FILES:
        return f"a file, not a model folder: {OTHER_FILES[path.suffix]}"
    if path.name == CONFIG_FILE or path.suffix == ".safetensors":
        return f"a file; give the model folder it is in: {path.parent}"
    return "a file, not a model folder; give a folder with config.json and *.safetensors"


def _without_config(folder: Path) -> str:
    try:
        inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
        snapshots = sorted(file.parent.name for file in folder.glob(f"snapshots/*/{CONFIG_FILE}"))
    except OSError as error:
        return f"cannot be read ({error}); give a folder that this user may read"
    if snapshots:
        version = folder / "snapshots" / snapshots[-1]
        return f"a model of the hub's cache; give the folder of one of its versions: {version}"
    if inside:
        return f"no {CONFIG_FILE} here, but in folders of it ({_listed(inside)}); give one of these"
    for suffix, meaning in OTHER_FILES.items():
        found = sorted(file.name for file in folder.glob(f"*{suffix}"))
        if found:
            return f"no {CONFIG_FILE} here; {_listed(found)}: {meaning}"
    return f"no {CONFIG_FILE} here; give a transformers model folder"


def _own_code(config: Mapping[str, Any]) -> str | None:
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return None
    names = [value for key, value in auto_map.items() if key.startswith(("AutoModel", "AutoConfig"))]
    return str(names[-1]) if names else None


def _refuse_adapter(folder: Path) -> None:
    found = [file for file in (folder / ADAPTER_FILE, *sorted(folder.glob("adapter_model.*"))) if file.is_file()]
    weights = [file for file in folder.glob("*.safetensors") if file not in found]
    if found and not weights and not (folder / INDEX_FILE).is_file():
        raise CheckpointError(
            f"{found[0]}: an adapter{_of_base(folder)}, and no *.safetensors weights of a model lie beside it; "
            f"{_merge()}"
        )
    if found:
        raise CheckpointError(
            f"{found[0]}: an adapter{_of_base(folder)} lies beside the weights of a model, and ted_ds would not use "
            f"it; {_merge()}, or move it away to use the model without it"
        )


def _of_base(folder: Path) -> str:
    try:
        base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" for {base}" if base else ""


def _merge() -> str:
    return (
        "merge it into its base first (peft: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
        ".save_pretrained(OTHER_FOLDER), and the tokenizer beside it)"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (", ..." if len(names) > NUM_SHOWN else "")
