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
from ted_ds.verbs.init.forms import Form, form_of

MOST_BYTES = 2**26
"""Of data that are looked at: rows may be sorted by their labels."""
MOST_ROWS = 200_000
CHARACTERS_PER_TOKEN = 4
"""About, of English text."""
BLANK_SHARE = 0.02
"""Of the lines of a text: with more blank ones between others, these end its documents."""


@dataclass(frozen=True)
class Looked:
    """What the first rows are."""

    rows: Sequence[Mapping[str, Any]]
    declared: Mapping[str, Sequence[str]]
    num_bytes: int
    """Of all files."""
    are_all: bool
    documents: str
    """Of texts: what one is, as the recipe's ``documents`` has it."""


@dataclass(frozen=True)
class Given:
    """What was given, and what was found of it."""

    teacher: str
    """A path, as is ``data``."""
    facts: ModelFacts
    data: str
    looked: Looked
    form: Form


def look_at(teacher: str, data: str) -> Given:
    """Read a model's files and some of the data, and make out the task.

    Raises:
        ConfigError: They are not here, nothing can be read, or no task is known by these columns.
        CheckpointError: No model can be read from the folder.
    """
    facts = look_at_teacher(teacher)
    looked, form = look_at_task(data, facts)
    return Given(teacher, facts, data, looked, form)


def look_at_task(path: str, teacher: ModelFacts) -> tuple[Looked, Form]:
    """Some of the data, and which task they are of, for a teacher.

    Raises:
        ConfigError: Nothing can be read, or no task is known by these columns.
    """
    looked = _look_at_data(path)
    return looked, form_of(looked.rows, teacher.family.language_model, looked.declared)


def _look_at_data(path: str) -> Looked:
    """Rows of a local source, whatever their columns."""
    if names_hub(Source(path=path)) or is_remote(path):
        raise ConfigError(f"--data {path}: is not on this machine; init reads data: give a local file or folder")
    looked = _read(Source(path=path))
    if looked.documents != "line":
        looked = _read(Source(path=path, documents="block"))
    if not looked.rows:
        raise ConfigError(f"--data {path}: no row can be read; give a file or folder with some")
    return looked


def _read(source: Source) -> Looked:
    rows: list[Mapping[str, Any]] = []
    declared: dict[str, Sequence[str]] = {}
    num_bytes, are_all, documents = 0, True, source.documents
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
        if listing.format == "text" and sum(not row["text"].strip() for row in rows) > BLANK_SHARE * len(rows):
            documents = "block"
    return Looked(rows, declared, num_bytes, are_all, documents)


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
