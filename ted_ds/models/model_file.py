"""Files of a model folder: what a plain reader takes without a word (keys given twice), or cannot read, is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.models.lfs import BEGINNING, WHAT_TO_DO, is_lfs_pointer


class _GivenTwice(Exception):
    """A key of a JSON object; no ``ValueError``, as the rest of the file is right."""


def read_json(file: Path) -> Any:
    """What is in a JSON file.

    Raises:
        CheckpointError: It is a pointer of Git LFS, or gives a key twice.
        OSError: It cannot be read.
        ValueError: It is no JSON.
    """
    refuse_pointer(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except _GivenTwice as error:
        raise CheckpointError(
            f"{file}: {error} is given twice, and JSON takes the last without a word; keep the one that is right"
        ) from error


def refuse_pointer(file: Path) -> None:
    """Make sure that a file is itself and no pointer of Git LFS.

    Raises:
        CheckpointError: It is one.
    """
    if file.is_file():
        with file.open("rb") as content:
            beginning = content.read(len(BEGINNING))
        if is_lfs_pointer(beginning):
            raise CheckpointError(f"{file}: {WHAT_TO_DO}")


def refuse_shared_ids(file: Path, vocabulary: Mapping[str, Any]) -> None:
    """Make sure that a vocabulary gives each token an id of its own.

    Raises:
        CheckpointError: It does not.
    """
    first: dict[int, str] = {}
    for token, index in vocabulary.items():
        if type(index) is not int:
            raise CheckpointError(f"{file}: gives {token!r} the id {index!r}, no whole number; copy the file again")
        if index in first:
            raise CheckpointError(
                f"{file}: gives {first[index]!r} and {token!r} the same id, {index}; use the file that the model was "
                "trained with"
            )
        first[index] = token


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _GivenTwice(repr(Counter(key for key, _ in pairs).most_common(1)[0][0]))
    return result
