"""The folders a DeepSpeed JSON names: DeepSpeed makes them at start-up, or when the first step is written down."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.deepspeed_keys import OFFLOAD_PARTS, offload_device

LOGS = (("flops_profiler", "output_file"), ("csv_monitor", "output_path"), ("tensorboard", "output_path"))
"""Sections that write where their key says, if they are enabled."""


def check_places_to_write(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every file and folder that could not be written, as the key's place and why."""
    for section, key in LOGS:
        content = config.get(section)
        if not isinstance(content, dict) or content.get("enabled") is not True:
            continue
        given = content.get(key)
        if isinstance(given, str) and given:
            why = cannot_be_made(Path(given), is_folder=key == "output_path")
            if why:
                yield f"{section}.{key}", f"{given}: {why}; give another place"
    for place, folder in nvme_folders(config):
        if folder.exists():
            why = cannot_be_made(folder, is_folder=True)
            if why:
                yield place, f"{folder}: {why}; give a folder on a fast disk of each node"


def nvme_folders(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The folders ZeRO swaps to, by the place of their key."""
    zero = config.get("zero_optimization")
    for part in OFFLOAD_PARTS if isinstance(zero, dict) else ():
        section = zero.get(part) if isinstance(zero, dict) else None
        given = section.get("nvme_path") if isinstance(section, dict) else None
        if isinstance(given, str) and given not in ("", "none") and offload_device(config, part) == "nvme":
            yield f"zero_optimization.{part}.nvme_path", Path(given)


def cannot_be_made(path: Path, *, is_folder: bool) -> str | None:
    """Why a file or folder cannot be written with the folders it needs; None where it can."""
    try:
        if path.exists() and path.is_dir() != is_folder:
            return "is a file, and must be a folder" if is_folder else "is a folder, and must be a file"
        nearest = path.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        if nearest != path.absolute() and not nearest.is_dir():
            return f"{nearest} is a file, and must be a folder"
        if not os.access(nearest, os.W_OK | (os.X_OK if nearest.is_dir() else 0)):
            return f"{nearest} cannot be written by this user"
    except (OSError, ValueError) as error:  # a name too long, a null character
        return f"cannot be written: {error}"
    return None
