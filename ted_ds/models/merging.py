"""Adapter folders as whole models: merged into their base by peft, once for a host, in a cache of this program's."""

from __future__ import annotations

import hashlib
import importlib
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.adapter_folder import ADAPTER_WEIGHTS, AdapterFolder, read_adapter
from ted_ds.models.companions import CARD, copy_tokenizer, licences_in
from ted_ds.models.config_agreement import classifier_rows
from ted_ds.models.config_build import build_config
from ted_ds.models.files import read_model_facts
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE
from ted_ds.models.loading import auto_class
from ted_ds.models.tensor_files import weight_files

ENDS = 1 << 20
"""Bytes of a base's file that are looked at, from its beginning and its end."""


def whole_model(folder: Path, architecture: str) -> Path:
    """A folder's model, with its adapter merged in where it is one.

    The weights of maps with an adapter are summed in fp32 and rounded once, to the base's dtype.

    Args:
        folder: Local.
        architecture: What the task makes of it (``CausalLM``, ...).

    Raises:
        ConfigError: peft is not installed.
        CheckpointError: The adapter cannot be merged.
    """
    adapter = read_adapter(folder)
    if adapter is None:
        return folder
    place = Path(constants.HF_HOME) / "ted_ds" / f"{folder.resolve().name}-{_identity(adapter, architecture)}"
    if not place.is_dir():
        scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            _merge(adapter, architecture, scratch)
            scratch.rename(place)
        except OSError:
            if not place.is_dir():  # else another did it meanwhile
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return place


def _merge(adapter: AdapterFolder, architecture: str, place: Path) -> None:
    peft = _peft(adapter)
    facts = read_model_facts(adapter.base)
    with safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 - no dict
    rows = classifier_rows(shapes, facts.family)
    try:
        config = build_config(adapter.base, {} if rows is None else {"num_labels": rows})
        dtype = config.dtype or torch.float32
        model = auto_class(architecture).from_pretrained(
            adapter.base, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        merged: Any = peft.PeftModel.from_pretrained(model, adapter.folder).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{adapter.folder}: this adapter cannot be merged into {adapter.base}: {reason:.300}; use the base it was "
            "trained beside"
        ) from error
    merged.to(dtype).save_pretrained(place)
    copy_tokenizer(adapter.tokenizer, place)
    for origin in (adapter.folder, adapter.base):
        for licence in licences_in(origin):
            (place / licence).parent.mkdir(exist_ok=True)
            if not (place / licence).exists():
                shutil.copyfile(origin / licence, place / licence)
    if (adapter.folder / CARD).is_file():
        shutil.copyfile(adapter.folder / CARD, place / CARD)


def _peft(adapter: AdapterFolder) -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(
            f"{adapter.folder}: an adapter, which peft merges into its base; it is not installed here: pip install "
            "'ted_ds[lora]'"
        ) from error


def _identity(adapter: AdapterFolder, architecture: str) -> str:
    """A hash of all that decides the merged weights; of the base's files, both ends."""
    digest = hashlib.sha256(architecture.encode())
    for file in (adapter.folder / ADAPTER_FILE, adapter.folder / ADAPTER_WEIGHTS, adapter.base / CONFIG_FILE):
        digest.update(file.read_bytes())
    for file in weight_files(adapter.base):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            content.seek(max(size - ENDS, 0))
            digest.update(content.read())
    return digest.hexdigest()[:12]
