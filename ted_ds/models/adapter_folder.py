"""Folders that hold an adapter (LoRA, as peft writes it) and no whole model: what it is beside, without torch."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BEFORE_ADAPTED = "base_model.model."
"""Begins the names of parameters there."""
KIND = "LORA"
"""The only ``peft_type`` that is merged here."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Of these a tokenizer has one at least."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter and the model it is for."""

    folder: Path
    base: Path
    config: Mapping[str, Any]
    """The content of its ``adapter_config.json``."""

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: its own, if it has one."""
        return self.folder if any((self.folder / name).is_file() for name in TOKENIZER_FILES) else self.base


def read_adapter(folder: Path) -> AdapterFolder | None:
    """The adapter in a folder; None where there is none, or the weights of a whole model lie there.

    Raises:
        CheckpointError: It cannot be merged: it is damaged, of another kind, or its base is not here.
    """
    file = folder / ADAPTER_FILE
    if not file.is_file() or any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, kind = config["base_model_name_or_path"], config["peft_type"]
        if not isinstance(base, str) or not base:
            raise ValueError("base_model_name_or_path names no model")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: no adapter's config ({error!r}); copy it again") from error
    if kind != KIND:
        raise CheckpointError(
            f"{file}: an adapter of peft_type {kind}, and ted_ds merges {KIND} alone; merge it into its base by peft "
            "(merge_and_unload), save that, and give its folder"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: an adapter for {base} without its {ADAPTER_WEIGHTS}; copy it, too")
    return AdapterFolder(folder, _find_base(folder, base), config)


def tokenizer_folder(folder: Path) -> Path:
    """Where a model folder's tokenizer is: an adapter without one has its base's.

    Raises:
        CheckpointError: It is an adapter that cannot be merged.
    """
    adapter = read_adapter(folder)
    return folder if adapter is None else adapter.tokenizer


def _find_base(folder: Path, name: str) -> Path:
    """The local folder of an adapter's base: as it says, beside or around it, or in the hub's cache."""
    last = Path(name).name
    for place in (Path(name), folder / name, folder.parent / last, folder / last):
        if (place / CONFIG_FILE).is_file():
            return place
    hub: Any = importlib.import_module("huggingface_hub")  # slow to import
    try:
        found = hub.try_to_load_from_cache(name, CONFIG_FILE)
    except ValueError:  # a path is no name of the hub's
        found = None
    if isinstance(found, str):
        return Path(found).parent
    raise CheckpointError(
        f"{folder}: an adapter for {name}, and that model is not here (neither as a path, nor as {last} beside the "
        f"adapter, nor in the hub's cache); put it there, or fetch it (hf download {name})"
    )
