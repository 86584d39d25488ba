"""The first rows of a source, looked at as a run would read them; without torch, transformers or datasets."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ted_ds.config.data import Cleaning, Source
from ted_ds.data.reading.listing import Listing, one_by_one, read_in_order
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.samples import BadRow, Example, Rows
from ted_ds.data.sources import is_remote, names_hub
from ted_ds.errors import DataError, counted

NUM_ROWS = 64
MOST_CHARACTERS = 2**22
"""Of text that is read, whatever the number of rows."""
LARGEST_ARRAY_BYTES = 2**22
"""A JSON array is read whole; a larger one takes too long here."""
MOST_PROBLEMS = 3
NAMES_OF_TYPES = {
    dict: "object",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "nothing",
}

CHARACTERS_PER_TOKEN = 4
"""About; of English by tokenizers of 30,000 to 150,000 entries."""


@dataclass(frozen=True)
class FirstRows:
    """What the first rows of a source say."""

    num_rows: int = 0
    """Rows, or examples in them, that can be used, of those looked at."""
    types: tuple[tuple[str, str], ...] = ()
    """The wanted columns, and in words what they hold."""
    characters: tuple[int, int, int] | None = None
    """Of the texts: the shortest, the median and the longest."""
    labels: tuple[tuple[str, int], ...] = ()
    """How often each label name stands there, for tasks with one label per text, the most frequent first; or whatever
    else is counted."""
    labels_are: str = "labels"
    """In words."""
    bad_records: tuple[BadRecord, ...] = ()
    """Rows that a run would skip and count."""
    problems: tuple[str, ...] = ()
    """What a run would refuse, each with its place."""
    not_read: str | None = None
    """Why nothing was read though nothing is wrong."""
    files: str = ""
    """Which files the source has, in words."""
    num_unlabelled: int = 0
    """Rows without a label."""
    are_all: bool = False
    """Whether the source has no rows but these."""
    rows_are: str = "rows"
    """What is counted: ``examples`` where a row has several."""

    @property
    def tokens_of_a_text(self) -> int | None:
        """About how many the median text has, with two around it; None where there is no text."""
        return None if self.characters is None else self.characters[1] // CHARACTERS_PER_TOKEN + 2

    @property
    def has_no_label(self) -> bool:
        """Whether it is known that no row of the source has a label."""
        return self.are_all and self.num_unlabelled == self.num_rows > 0

    def __str__(self) -> str:
        """In words, on one line."""
        if self.not_read is not None:
            return self.not_read
        columns = ", ".join(f"{name} ({kind})" for name, kind in self.types)
        parts = [self.files, f"first {counted(self.num_rows, self.rows_are.removesuffix('s'))}: {columns}"]
        if self.characters is not None:
            parts.append("texts of {} to {} characters, median {}".format(*(self.characters[i] for i in (0, 2, 1))))
        if self.labels:
            counts = ", ".join(f"{name} {number}" for name, number in self.labels[:6])
            parts.append(f"{self.labels_are} {counts}")
        elif self.num_unlabelled:
            without = "all" if self.num_unlabelled == self.num_rows else str(self.num_unlabelled)
            parts.append(f"{without} without a label")
        if self.bad_records:
            parts.append(f"{len(self.bad_records)} cannot be used, such as {describe_bad(self.bad_records[0])}")
        return "; ".join(parts)


def describe_bad(record: BadRecord) -> str:
    """A bad record with its place."""
    return f"{record.file}: {record.position}: {record.fault}"


def first_rows(source: Source, rows: Rows, *, cleaning: Cleaning | None = None, num_rows: int = NUM_ROWS) -> FirstRows:
    """Read the first rows of a source as ``rows`` reads them; whatever is wrong comes back as ``problems``.

    What is only reached over a network is not read.
    """
    if names_hub(source) or is_remote(source.path):
        return FirstRows(not_read="not looked into: it is not on this machine")
    try:
        num_files, listings = one_by_one(source)
        files = counted(num_files, "file")
        if Path(source.path.removeprefix("file://")).is_dir():
            files += f" of split {source.split!r}"
        for listing in listings:
            if listing.files[0].is_array and listing.files[0].size > LARGEST_ARRAY_BYTES:
                return FirstRows(not_read="not looked into: a JSON array is read whole, and this one is large")
            found = _look(listing, rows, cleaning or Cleaning(), num_rows)
            found = replace(found, files=files, are_all=found.are_all and num_files == 1)
            if found.num_rows or found.problems:
                return found
        return FirstRows(problems=(f"{source.path}: no rows; give at least one",))
    except DataError as error:
        return FirstRows(problems=tuple(str(error).splitlines()))


def _look(listing: Listing, rows: Rows, cleaning: Cleaning, num_rows: int) -> FirstRows:
    columns = rows.columns
    bad: list[BadRecord] = []
    good: list[dict[str, Any]] = []
    lengths: list[int] = []
    problems: dict[str, list[str]] = {}
    labels: Counter[str] = Counter()
    num_characters = num_unlabelled = num_rows_read = 0
    are_all = False
    max_bytes = int(cleaning.max_document_mib * 2**20)
    records = read_in_order(
        listing, columns, max_bytes=max_bytes, report=bad.append, of_words=rows.of_words, num_texts=rows.num_texts
    )
    try:
        for record in records:
            text = record.row[columns[0]] if columns else ""
            examples: Sequence[Example] = [Example(" ".join(text) if rows.of_words else str(text), None)]
            faults: Sequence[str | None] = [None]
            if rows.are_labelled:
                try:
                    examples = rows.read(record.row, where=record.place, declared=dict(record.file.class_names))
                except BadRow as error:
                    faults = [str(error)]
                except DataError as error:
                    problems.setdefault(str(error).removeprefix(record.place), []).append(str(error))
                else:
                    faults = [example.fault(columns) for example in examples]
                    right = (one for one, fault in zip(examples, faults, strict=True) if fault is None)
                    labels.update(name for one in right for name in rows.counted(one.label))
            num_rows_read += 1
            for example, fault in zip(examples, faults, strict=True):
                if fault is None:
                    good.append(record.row)
                    lengths.append(len(example.whole_text))
                    num_unlabelled += example.label is None and rows.are_labelled
                else:
                    bad.append(record.bad(fault))
                num_characters += len(example.whole_text)
            if len(good) + len(bad) >= num_rows or num_characters >= MOST_CHARACTERS:
                break
        else:
            are_all = True
    except DataError as error:  # the first row lacks a column
        problems[str(error)] = [str(error)]
    if bad and not good and not problems:
        problems = {record.position: [describe_bad(record)] for record in bad}
    lengths.sort()
    return FirstRows(
        len(good),
        tuple((name, _types(good, name)) for name in columns or dict.fromkeys(key for row in good for key in row))
        if good
        else (),
        (lengths[0], lengths[len(lengths) // 2], lengths[-1]) if lengths else None,
        tuple(labels.most_common()),
        rows.counted_as,
        tuple(bad),
        tuple(map(_once, itertools.islice(problems.values(), MOST_PROBLEMS))),
        num_unlabelled=num_unlabelled,
        are_all=are_all,
        rows_are="examples" if len(good) + len(bad) > num_rows_read else "rows",
    )


def _once(alike: list[str]) -> str:
    """A problem that several rows have, by the first of them."""
    more = len(alike) - 1
    return alike[0] if not more else f"{alike[0]} (and {more} more of the first rows)"


def _types(rows: list[dict[str, Any]], column: str) -> str:
    kinds = dict.fromkeys(NAMES_OF_TYPES.get(type(row[column]), "list") for row in rows if column in row)
    return " or ".join(kinds)
