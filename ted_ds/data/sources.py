"""Where a source's files are and in what format. Imports neither torch nor datasets, so that ``check`` is instant."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.data import Source
from ted_ds.errors import DataError

FORMAT_OF_ENDING = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
COMPRESSION_ENDINGS = (".gz", ".zst", ".bz2", ".xz")
HUB_NAME = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$")
FORMAT_OF_BUILDER = {"json": "json", "csv": "csv", "parquet": "parquet", "text": "text", "arrow": "arrow"}
"""Builders of the datasets library whose files are read here, and what they read."""


def is_remote(path: str) -> bool:
    """Whether a path is a URL of another file system than the local one."""
    return "://" in path and not path.startswith("file://")


def locate(source: Source) -> tuple[str, list[str]]:
    """The format of a source, and its files in a fixed order.

    A hub name and a URL are looked up over the network.

    Raises:
        DataError: Nothing is there, a folder holds no data files, or the format cannot be told.
    """
    if is_remote(source.path):
        return _format(source, _remote_files(source.path))
    if names_hub(source):
        return _hub_files(source)
    where = source.path.removeprefix("file://")
    path = Path(where)
    if path.is_dir():
        path = _split_folder(path, source.split)
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _format_of(str(file)) is not None)
        if not files:
            raise DataError(f"{path}: this folder holds no data files; known endings: {', '.join(FORMAT_OF_ENDING)}")
    elif path.is_file():
        files = [where]
    else:
        files = sorted(glob.glob(where, recursive=True))
        if not files:
            raise DataError(f"{path}: no such data file or folder")
    return _format(source, files)


def names_hub(source: Source) -> bool:
    """Whether a source is a Hugging Face dataset: it says so, or nothing local has its name.

    (A local folder with ``format: hub`` is read as a dataset repository is: by its splits.)
    """
    if source.format == "hub":
        return True
    return (
        source.format == "auto"
        and HUB_NAME.match(source.path) is not None
        and _format_of(source.path) is None
        and not Path(source.path).exists()
        and not glob.glob(source.path, recursive=True)
    )


def _split_folder(path: Path, split: str) -> Path:
    """Where the files of a folder are; ``Dataset.save_to_disk`` gives each split a folder of its own."""
    if not (path / "dataset_dict.json").is_file():
        return path
    if not (path / split).is_dir():
        raise DataError(f"{path}: this saved dataset has no split {split!r}; set split")
    return path / split


def _remote_files(url: str) -> list[str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if filesystem.isdir(path):
            found = [name for name in filesystem.find(path) if _format_of(name) is not None]
        elif glob.has_magic(path):
            found = filesystem.glob(path)
        else:
            found = [path] if filesystem.exists(path) else []
        files = sorted(filesystem.unstrip_protocol(name) for name in found)
    except Exception as error:  # file systems raise their own types; ImportError says what to install
        raise DataError(f"{url}: cannot be listed: {error}") from error
    if not files:
        raise DataError(f"{url}: no such data file or folder")
    return files


def _hub_files(source: Source) -> tuple[str, list[str]]:
    from datasets import load_dataset_builder
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    try:
        builder = load_dataset_builder(source.path, source.name)
    except Exception as error:  # the hub client and datasets raise their own types
        raise DataError(f"{source.path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
    kind = FORMAT_OF_BUILDER.get(type(builder).__module__.rpartition(".")[2])
    if kind is None:
        raise DataError(
            f"{source.path}: this dataset is made of files ted_ds cannot read (datasets' builder "
            f"{type(builder).__name__}); use one of {', '.join(FORMAT_OF_BUILDER)}"
        )
    splits: Any = builder.config.data_files or {}
    if source.split not in splits:
        raise DataError(f"{source.path}: no split {source.split!r}; it has {', '.join(map(str, splits)) or 'none'}")
    return kind, [str(file) for file in splits[source.split]]


def _format(source: Source, files: Sequence[str]) -> tuple[str, list[str]]:
    formats = {_format_of(file) for file in files}
    if source.format != "auto":
        return source.format, [*files]
    if None in formats or len(formats) > 1:
        raise DataError(
            f"{source.path}: cannot tell one format from the endings of its files; set format: json, csv, parquet, "
            "text or arrow"
        )
    return str(formats.pop()), [*files]


def _format_of(file: str) -> str | None:
    for ending in COMPRESSION_ENDINGS:
        file = file.removesuffix(ending)
    return FORMAT_OF_ENDING.get(Path(file).suffix)
