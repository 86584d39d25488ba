"""What can be found out of a teacher and of data before a recipe is written; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ted_ds.config.data import BadRecords, Source
from ted_ds.data.bad_records import too_many
from ted_ds.data.first_rows import CHARACTERS_PER_TOKEN
from ted_ds.data.reading.csv_rows import DELIMITERS
from ted_ds.data.reading.listing import one_by_one, read_in_order
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.sources import HUB_NAME, is_remote, names_hub, splits_here, uncompressed_name
from ted_ds.errors import ConfigError
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.verbs.init.forms import Form, form_of

MOST_BYTES = 2**26
"""Of data that are looked at: rows may be sorted by their labels."""
MOST_ROWS = 200_000
ROWS_OF_SPLIT = 64
"""That are looked at of a split that is scored."""
BLANK_SHARE = 0.02
"""Of the lines of a text: with more blank ones between others, these end its documents."""
TRAIN, SCORED_SPLITS = "train", ("validation", "test")


@dataclass(frozen=True)
class Looked:
    """What the first rows are."""

    rows: Sequence[Mapping[str, Any]]
    declared: Mapping[str, Sequence[str]]
    num_bytes: int
    """Of all files."""
    are_all: bool
    source: Source
    """As the recipe names it: what a document is, and what is between the values of a row."""
    bad: Sequence[BadRecord] = ()
    """Records among them that cannot be read."""
    is_csv: bool = False
    splits: Sequence[str] = ()
    """Of a folder."""

    @property
    def columns(self) -> list[str]:
        """Of any row."""
        return [*dict.fromkeys(name for row in self.rows for name in row)]


@dataclass(frozen=True)
class Given:
    """What was given, and what was found of it."""

    teacher: str
    """A path, as is ``data``."""
    facts: ModelFacts
    data: str
    looked: Looked
    form: Form
    scored: Mapping[str, str | None] = field(default_factory=dict)
    """Splits of the data beside that which is trained on, each with why it is not used; None where it is."""


def look_at(teacher: str, data: str, kind: str | None = None) -> Given:
    """Read a model's files and some of the data, and make out the task.

    Args:
        teacher: Its folder.
        data: A file or folder.
        kind: The task that is asked for; None: whichever these columns are of.

    Raises:
        ConfigError: They are not here, nothing can be read, or no task is known by these columns.
        CheckpointError: No model can be read from the folder.
    """
    facts = look_at_teacher(teacher)
    return given_of(teacher, facts, data, *look_at_task(data, facts, kind))


def given_of(teacher: str, facts: ModelFacts, data: str, looked: Looked, form: Form) -> Given:
    """All of it together, with the splits that models may be scored by."""
    return Given(teacher, facts, data, looked, form, _scored(looked, form))


def look_at_task(path: str, teacher: ModelFacts, kind: str | None = None) -> tuple[Looked, Form]:
    """Some of the data, and which task they are of, for a teacher.

    Raises:
        ConfigError: Nothing can be read, or no task is known by these columns.
    """
    looked = _look_at_data(path)
    return looked, form_of(looked.rows, teacher.family.language_model, looked.declared, kind)


def _look_at_data(path: str) -> Looked:
    """Rows of a local source, whatever their columns."""
    if names_hub(Source(path=path)):
        raise ConfigError(
            f"--data {path}: is not on this machine, and init reads data; of the Hub, fetch it first: hf download "
            f"{path} --repo-type dataset --local-dir {Path(path).name}"
        )
    if is_remote(path):
        raise ConfigError(f"--data {path}: is not on this machine; init reads data: give a local file or folder")
    splits = splits_here(Source(path=path))
    if splits and TRAIN not in splits:
        raise ConfigError(f"--data {path}: no split {TRAIN!r} to learn from; it has {', '.join(splits)}")
    looked = _separated(_read(Source(path=path)))
    if looked.source.documents != "line":
        looked = _read(looked.source)
    if not looked.rows:
        why = f" ({_in_words(looked.bad[0])})" if looked.bad else ""
        raise ConfigError(f"--data {path}: no row can be read{why}; give a file or folder with some")
    reason = too_many(
        len(looked.bad), len(looked.bad) + len(looked.rows), looked.bad, BadRecords(), is_complete=looked.are_all
    )
    if reason is not None:
        raise ConfigError(f"--data {reason.removesuffix(', or raise the limit')}")
    return replace(looked, splits=splits)


def _in_words(bad: BadRecord) -> str:
    return f"{bad.file}: {bad.position}: {bad.fault}"


def _separated(looked: Looked) -> Looked:
    """The same, by what is between the values of its rows, where that is nothing that is tried without columns to find.

    Raises:
        ConfigError: Names of columns hold it nevertheless.
    """
    if not looked.is_csv or (looked.rows and not _holding(looked)):
        return looked
    path = looked.source.path
    tried = (_read(looked.source.model_copy(update={"delimiter": one})) for one in DELIMITERS)
    found = next((one for one in tried if len(one.columns) > 1 and not _holding(one)), None)
    if found is None and looked.rows:
        raise ConfigError(
            f"--data {path}: a column is called {_holding(looked)[0]!r}, which looks like several; save it with commas "
            "between values, or give the column another name"
        )
    return looked if found is None else found


def _holding(looked: Looked) -> list[str]:
    """Names of columns in which something stands that is usual between values, and is not between those."""
    own = looked.source.delimiter or ("\t" if uncompressed_name(looked.source.path).endswith(".tsv") else ",")
    return [name for name in looked.columns if any(one in name for one in DELIMITERS if one != own)]


def _read(source: Source, most_rows: int = MOST_ROWS) -> Looked:
    rows: list[Mapping[str, Any]] = []
    bad: list[BadRecord] = []
    declared: dict[str, Sequence[str]] = {}
    num_bytes, are_all, documents, is_csv = 0, True, source.documents, False
    for listing in one_by_one(source)[1]:
        (file,) = listing.files
        num_bytes += file.size
        declared |= dict(file.class_names)
        is_csv = is_csv or listing.format == "csv"
        if not are_all:
            continue
        read = 0
        for record in read_in_order(listing, (), max_bytes=MOST_BYTES, report=bad.append, num_texts=0):
            rows.append(record.row)
            read += sum(len(str(value)) for value in record.row.values())
            if len(rows) >= most_rows or read >= MOST_BYTES:
                are_all = False
                break
        if listing.format == "text" and sum(not row["text"].strip() for row in rows) > BLANK_SHARE * len(rows):
            documents = "block"
    own = source if documents == source.documents else source.model_copy(update={"documents": documents})
    return Looked(rows, declared, num_bytes, are_all, own, bad, is_csv)


def _scored(looked: Looked, form: Form) -> dict[str, str | None]:
    """The other splits, each with why it is not used; None where it is."""
    found: dict[str, str | None] = {}
    for split in looked.splits:
        if split in SCORED_SPLITS:
            rows = _read(looked.source.model_copy(update={"split": split}), ROWS_OF_SPLIT).rows
            found[split] = _why_not_scored(rows, form)
        elif split != TRAIN:
            found[split] = "it is neither train nor validation nor test"
    return found


def _why_not_scored(rows: Sequence[Mapping[str, Any]], form: Form) -> str | None:
    if not rows:
        return "no row of it can be read"
    missing = [name for name in form.columns if name not in rows[0]]
    if missing:
        return f"it has no column {', '.join(missing)}"
    own = form.task.get("label_column", (form.task.get("target_columns") or [None])[0])
    if own is not None and all(row.get(own) in (None, "", -1, "-1", -100) for row in rows):
        return "its rows have no labels"
    return None


def look_at_teacher(path: str) -> ModelFacts:
    """Read the files of a model.

    Raises:
        ConfigError: It is no local folder.
        CheckpointError: No model can be read from it.
    """
    if not Path(path).is_dir():
        fetch = ""
        if HUB_NAME.match(path) and "/" in path:
            fetch = f"; of the Hub, fetch it first: hf download {path} --local-dir {Path(path).name}"
        raise ConfigError(f"--teacher {path}: no such folder; init reads a model's files: give a local one{fetch}")
    return read_model_facts(Path(path))


def longest_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Of 95 % of rows, how many tokens their texts have at most, about."""
    lengths = sorted(sum(len(str(row.get(name) or "")) for name in columns) for row in rows)
    return lengths[min(int(0.95 * len(lengths)), len(lengths) - 1)] // CHARACTERS_PER_TOKEN + 2
