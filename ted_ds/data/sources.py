"""Where a source's files are and in what format. Imports neither torch nor datasets, so that ``check`` is instant."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from ted_ds.config.schema import Data, Source
from ted_ds.errors import DataError

FORMAT_OF_ENDING = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSION_ENDINGS = (".gz", ".zst", ".bz2", ".xz")
HUB_NAME = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$")


def locate(source: Source) -> tuple[str, list[str]]:
    """The format of a source, and its files in a fixed order (none for a hub name).

    Raises:
        DataError: Nothing is there, a folder holds no data files, or the format cannot be told.
    """
    path = Path(source.path)
    if source.format == "hub":
        return "hub", []
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _format_of(file) is not None)
        if not files:
            raise DataError(f"{path}: this folder holds no data files; known endings: {', '.join(FORMAT_OF_ENDING)}")
    elif path.is_file():
        files = [str(path)]
    else:
        files = sorted(glob.glob(source.path, recursive=True))
        if not files and HUB_NAME.match(source.path) and _format_of(path) is None and source.format == "auto":
            return "hub", []
        if not files:
            raise DataError(f"{path}: no such data file or folder")
    formats = {_format_of(Path(file)) for file in files}
    if source.format != "auto":
        return source.format, files
    if None in formats or len(formats) > 1:
        raise DataError(
            f"{path}: cannot tell one format from the endings of its files; set format: json, csv, parquet or text"
        )
    return str(formats.pop()), files


def data_files(data: Data) -> dict[str, int]:
    """Every local data file and its size in bytes: tells a phase that its data has changed, without reading it."""
    files = [file for source in [*data.train, *(data.evaluation or [])] for file in locate(source)[1]]
    return {file: Path(file).stat().st_size for file in files}


def _format_of(file: Path) -> str | None:
    name = file.name
    for ending in COMPRESSION_ENDINGS:
        name = name.removesuffix(ending)
    return FORMAT_OF_ENDING.get(Path(name).suffix)
