"""What in a model's JSON files only holds on the machine it was written on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

BEGINNINGS = ("~", "./", "../", ".\\", "..\\", "file:")
LOCAL_FLAGS = ("is_local", "local_files_only")
"""What transformers leaves in a tokenizer's settings of how it was loaded."""


def without_local_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the paths in it, however deep, and without names of where it came from."""
    return {
        key: _without(value)
        for key, value in config.items()
        if not key.endswith("name_or_path") and not _is_path(value)
    }


def local_values(settings: Any, place: str = "") -> Iterator[str]:
    """The keys of what :func:`without_local_paths` would leave out, and of how a tokenizer was loaded."""
    items = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
    for key, value in items:
        where = f"{place}.{key}".lstrip(".")
        if _is_path(value) or key in LOCAL_FLAGS:
            yield where
        elif isinstance(value, Mapping | list):
            yield from local_values(value, where)


def local_values_of(file: Path) -> list[str]:
    """Those of a JSON file; none where it is not there."""
    return [*local_values(json.loads(file.read_text(encoding="utf-8")))] if file.is_file() else []


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_local_paths(value)
    if isinstance(value, list):
        return [_without(one) for one in value if not _is_path(one)]
    return value


def _is_path(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith(BEGINNINGS)
