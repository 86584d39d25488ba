"""What ``ted-ds init`` asks in a terminal: the little that cannot be found out, each answer looked at at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ted_ds.config.cut import CutFromTeacher
from ted_ds.errors import ConfigError, TedError, counted
from ted_ds.models.files import ModelFacts
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.verbs.init.looking import Given, given_of, look_at_task, look_at_teacher
from ted_ds.verbs.init.size import size_in_recipe
from ted_ds.verbs.words import share

PLACES = ("*", "*/*")
"""Where something is looked for that may be meant, from the current folder."""
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
TEACHER, DATA = "teacher, a model folder", "data, a file or folder of texts, labelled or not, or chats"
SIZE = "student, as a share of the teacher's blocks or their number"
Found = TypeVar("Found")
Size = int | float
"""Blocks, or a share."""


def ask(teacher: str | None, data: str | None, size: Size | None, kind: str | None = None) -> tuple[Given, Size | None]:
    """Ask for what is not given: teacher, data, and how large the student is; a ``kind`` of task is never asked for.

    Raises:
        ConfigError: The answers end before the questions do.
        TedError: What was given is wrong.
    """
    print("Enter takes what stands in brackets, Ctrl-C ends.\n")
    teacher, facts = _answered(TEACHER, teacher, _first(_models()), _look_at_teacher)
    data, (looked, form) = _answered(DATA, data, _first(_files()), lambda path: look_at_task(path, facts, kind))
    print(f"  {form.task['kind']}: {form.reason}")
    if size is None:
        _, size = _answered(SIZE, None, "50%", lambda said: _size(said, facts))
    print()
    return given_of(teacher, facts, data, looked, form), size


def _answered(question: str, given: str | None, default: str | None, look: Callable[[str], Found]) -> tuple[str, Found]:
    """An answer, and what was found of it; asked again until something is."""
    if given is not None:
        return given, look(given)
    while True:
        try:
            said = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        except EOFError as error:
            raise ConfigError(f"no answer to: {question}; nothing was written") from error
        if said is None:
            continue
        said = str(Path(said).expanduser())
        try:
            return said, look(said)
        except (TedError, argparse.ArgumentTypeError) as error:
            print(f"  {error}")


def _look_at_teacher(path: str) -> ModelFacts:
    facts = look_at_teacher(path)
    print(f"  {facts.model_type}, {counted(facts.num_blocks, 'block')} of width {facts.hidden_size}")
    return facts


def _size(said: str, teacher: ModelFacts) -> Size:
    size = int(said) if said.isdecimal() else share(said)
    blocks = size if isinstance(size, int) else None
    cut = CutFromTeacher(num_blocks=size_in_recipe(blocks, None if blocks else size, teacher))
    print(f"  {cut.number_of(teacher.num_blocks)} of {counted(teacher.num_blocks, 'block')}")
    return size


def _models() -> Iterator[str]:
    return (str(file.parent) for place in PLACES for file in sorted(Path().glob(f"{place}/{CONFIG_FILE}")))


def _files() -> Iterator[str]:
    """Of data, as they are called, but for those of models; of several in a folder, the folder."""
    for place in PLACES:
        for file in sorted(Path().glob(place)):
            if file.suffix in DATA_FILES and file.is_file() and not (file.parent / CONFIG_FILE).is_file():
                yield str(file if place == PLACES[0] else file.parent)


def _first(found: Iterator[str]) -> str | None:
    return next(found, None)
