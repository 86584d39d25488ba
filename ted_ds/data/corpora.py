"""Rows and documents out of sources: read as a stream, checked row by row, split by a hash of the text."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import IterableDataset, interleave_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.utils.logging import disable_progress_bar, set_verbosity_error

from ted_ds.config.schema import Source
from ted_ds.data.sources import locate
from ted_ds.errors import DataError


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out split: decided by its SHA-256, never by its position.

    The same text is on the same side in every run, order, shard and epoch, and duplicates never straddle the split.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def read_rows(source: Source, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a source in file order, each with ``columns``.

    Raises:
        DataError: Unreadable, empty, or a row without one of the columns.
    """
    yield from _checked_rows(_open(source, columns), source.path, columns, in_order=True)


def documents(
    sources: Sequence[Source],
    *,
    text_column: str,
    keep: Callable[[str], bool],
    seed: int,
    shuffle_buffer: int,
) -> Iterator[str]:
    """An endless, shuffled, weighted mixture of the documents that ``keep`` accepts.

    The order is a pure function of (sources, seed), the same on every rank. Each epoch is shuffled anew; with several
    sources an epoch ends when each has been read whole, as ``datasets.interleave_datasets`` defines it.

    Raises:
        DataError: Unreadable, a row without text, or no document is kept.
    """
    columns = [text_column]
    streams = [_open(source, columns) for source in sources]
    shares = [source.weight / sum(s.weight for s in sources) for source in sources]
    where = ", ".join(source.path for source in sources)
    for epoch in itertools.count():
        shuffled = [stream.shuffle(seed=seed + epoch, buffer_size=shuffle_buffer) for stream in streams]
        mixture = (
            shuffled[0]
            if len(shuffled) == 1
            else interleave_datasets(shuffled, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
        )
        empty = True
        for row in _checked_rows(mixture, where, columns, in_order=False):
            if row[text_column].strip() and keep(row[text_column]):
                empty = False
                yield row[text_column]
        if empty:
            raise DataError(f"{where}: no documents are left to read; the files are empty or all is held out")


def _open(source: Source, columns: Sequence[str]) -> IterableDataset:
    disable_progress_bar()
    set_verbosity_error()
    kind, files = locate(source)
    if files and not any(Path(file).stat().st_size for file in files):
        raise DataError(f"{source.path}: empty; give at least one row")
    # in CSV, texts such as "null" or "NA" are texts
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}
    try:
        if kind == "hub":
            stream = load_dataset(source.path, source.name, split=source.split, streaming=True)
        else:
            stream = load_dataset(kind, data_files={"train": files}, split="train", streaming=True, **options)
        first = next(iter(stream.take(1)), None)
    except DataError:
        raise
    except Exception as error:  # the readers raise their own types, down to pyarrow's and the hub client's
        raise _unreadable(source.path, error) from error
    if first is None:
        raise DataError(f"{source.path}: empty; give at least one row")
    absent = [column for column in columns if column not in first]
    if absent:
        raise DataError(
            f"{source.path}: row 1: no column {absent[0]!r}; it has {', '.join(first)}. "
            "Set task.text_column, task.label_column or task.target_columns"
        )
    return stream.select_columns(list(columns))


def _checked_rows(
    stream: IterableDataset, name: str, columns: Sequence[str], *, in_order: bool
) -> Iterator[dict[str, Any]]:
    """The rows, each checked; only a stream in file order knows the number of a bad one."""
    rows = iter(stream)
    for number in itertools.count(1):
        where = f"{name}: row {number}" if in_order else f"{name}: a row"
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as in _open
            raise _unreadable(f"{name}: near row {number}" if in_order else name, error) from error
        for column in columns:
            if row.get(column) is None:
                raise DataError(f"{where}: no value in column {column!r}; every row needs one")
        if not isinstance(row[columns[0]], str):
            raise DataError(f"{where}: column {columns[0]!r} holds {row[columns[0]]!r}; it must be text")
        yield row


def _unreadable(where: str, error: Exception) -> DataError:
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    return DataError(f"{where}: cannot be read: {' '.join(str(cause).split())[:300]}")
