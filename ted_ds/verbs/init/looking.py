"""What can be found out of a teacher and of data before a recipe is written; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.config.data import Source
from ted_ds.data.reading.listing import one_by_one, read_in_order
from ted_ds.data.sources import is_remote, names_hub
from ted_ds.errors import ConfigError
from ted_ds.models.files import ModelFacts, read_model_facts

MOST_BYTES = 2**26
"""Of data that are looked at: rows may be sorted by their labels."""
MOST_ROWS = 200_000
CHARACTERS_PER_TOKEN = 4
"""About, of English text."""


@dataclass(frozen=True)
class Looked:
    """What the first rows are."""

    rows: Sequence[Mapping[str, Any]]
    declared: Mapping[str, Sequence[str]]
    num_bytes: int
    """Of all files."""
    are_all: bool


def look_at_data(path: str) -> Looked:
    """Read rows of a local source, whatever their columns.

    Raises:
        ConfigError: It is not on this machine, or nothing in it can be read.
    """
    source = Source(path=path)
    if names_hub(source) or is_remote(path):
        raise ConfigError(f"--data {path}: is not on this machine; init reads data: give a local file or folder")
    rows: list[Mapping[str, Any]] = []
    declared: dict[str, Sequence[str]] = {}
    num_bytes, are_all = 0, True
    for listing in one_by_one(source)[1]:
        (file,) = listing.files
        num_bytes += file.size
        declared |= dict(file.class_names)
        if not are_all:
            continue
        read = 0
        for record in read_in_order(listing, (), max_bytes=MOST_BYTES, report=lambda _: None, num_texts=0):
            rows.append(record.row)
            read += sum(len(str(value)) for value in record.row.values())
            if len(rows) >= MOST_ROWS or read >= MOST_BYTES:
                are_all = False
                break
    if not rows:
        raise ConfigError(f"--data {path}: no row can be read; give a file or folder with some")
    return Looked(rows, declared, num_bytes, are_all)


def look_at_teacher(path: str) -> ModelFacts:
    """Read the files of a model.

    Raises:
        ConfigError: It is no local folder.
        CheckpointError: No model can be read from it.
    """
    if not Path(path).is_dir():
        raise ConfigError(f"--teacher {path}: no such folder; init reads a model's files: give a local one")
    return read_model_facts(Path(path))


def longest_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Of 95 % of rows, how many tokens their texts have at most, about."""
    lengths = sorted(sum(len(str(row.get(name) or "")) for name in columns) for row in rows)
    return lengths[min(int(0.95 * len(lengths)), len(lengths) - 1)] // CHARACTERS_PER_TOKEN + 2
