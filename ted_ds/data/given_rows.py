"""Rows that Python hands to a run: written down once, and then read, shuffled and gone on with as any file's are.

So a run on them is resumed exactly, at any place and on any number of ranks, and refused on other rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError, DataError

FOLDER = "given"
"""In a run's output folder."""
NOTE = "train.json"


@dataclass(frozen=True)
class KeptRows:
    """A file of rows."""

    file: Path
    sha256: str
    fingerprint: str | None
    """That of the ``datasets.Dataset`` they are from; None of others, which have none."""


def keep_rows(rows: Iterable[Mapping[str, Any]], output_dir: Path, *, has_begun: bool) -> tuple[Path, bool]:
    """The file with these rows in a run's folder: Parquet of a ``datasets.Dataset``, else JSON lines. On one rank.

    Args:
        rows: Mappings of column to value; all of them are gone through, but for a dataset whose fingerprint is known.
        output_dir: The run's.
        has_begun: Whether phases may have learned from what is there already.

    Returns:
        The file, and whether it is new.

    Raises:
        DataError: There are no rows, or one is none.
        CheckpointError: The run began with other rows.
    """
    folder = output_dir / FOLDER
    known = _note(folder)
    fingerprint = _fingerprint(rows)
    if known is not None and fingerprint is not None and known.fingerprint == fingerprint:
        return known.file, False
    ending = "jsonl" if fingerprint is None else "parquet"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".train.{os.getpid()}.{ending}"
    try:
        if fingerprint is None:
            _write_lines(rows, unfinished)
        else:
            _write_dataset(rows, unfinished)
        found = KeptRows(folder / f"train.{ending}", _sha256(unfinished), fingerprint)
        if known is not None and (known.sha256, known.file.suffix) == (found.sha256, found.file.suffix):
            return known.file, False
        if known is not None and has_begun:
            raise CheckpointError(
                f"train_data: other rows than those this run began with ({known.file}, SHA-256 {known.sha256[:12]}..., "
                f"now {found.sha256[:12]}...); give the same, or choose another output_dir"
            )
        unfinished.replace(found.file)
        (folder / NOTE).write_text(json.dumps({**asdict(found), "file": found.file.name}) + "\n", encoding="utf-8")
        return found.file, True
    finally:
        unfinished.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def forget_rows(output_dir: Path) -> None:
    """Remove what :func:`keep_rows` wrote for a run that then did not begin. On one rank."""
    folder = output_dir / FOLDER
    for file in [*folder.glob("train.*")]:
        file.unlink()
    for place in (folder, output_dir):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _note(folder: Path) -> KeptRows | None:
    place = folder / NOTE
    if not place.is_file():
        return None
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        known = KeptRows(folder / content["file"], content["sha256"], content["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place}: damaged ({error!r}); restore it, or choose another output_dir") from error
    return known if known.file.is_file() else None


def _fingerprint(rows: Any) -> str | None:
    datasets = sys.modules.get("datasets")  # whoever has such an object has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return rows._fingerprint
    if datasets is not None and isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(f"train_data: a dataset of the splits {', '.join(rows)}; give one of them")
    return None


def _write_dataset(rows: Any, file: Path) -> None:
    if not len(rows):
        raise DataError("train_data: a dataset without rows; give at least one")
    rows.to_parquet(file)


def _write_lines(rows: Any, file: Path) -> None:
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise DataError(
            f"train_data: a {type(rows).__name__}: use a datasets.Dataset, or an iterable of rows, which are "
            "mappings of column to value"
        )
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(_lines(rows))
    if not file.stat().st_size:
        raise DataError(
            "train_data: no rows; give at least one (an iterator that was read before has none left: give a list, or a "
            "new one)"
        )


def _lines(rows: Iterable[Any]) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"train_data: row {number} is a {type(row).__name__}: use a mapping of column to value, such as "
                '{"text": "..."}'
            )
        try:
            yield json.dumps(dict(row), ensure_ascii=False, default=_plain) + "\n"
        except (TypeError, ValueError) as error:
            raise DataError(f"train_data: row {number}: {error}; use text, numbers, and lists of them") from error


def _plain(value: Any) -> Any:
    """Of arrays and numbers of numpy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written down")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
