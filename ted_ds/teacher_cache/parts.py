"""Parts of a cache: records that a rank wrote one after the other, and an index that makes them count."""

from __future__ import annotations

import io
import json
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ted_ds.output.phase_folder import sync

ALIGNMENT = 8
NOTHING_LOST = (0.0, 0.0, 0.0)
MOST_NAMED = 5
"""Examples that are missing, in a message."""
SUFFIXES = (".bin", ".npz", ".unfinished")
"""Of a part's records, of its index, and of that while it is written."""


class PartWriter:
    """Writes records of one rank, one after the other, as a part with a name of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = folder / f"{secrets.token_hex(8)}_{rank:05d}.bin"
        self._stream = self._file.open("wb")
        self._rows: list[tuple[int, int, int, int]] = []
        self.num_bytes = 0

    def add(self, sample: int, packed: bytes, *, tokens: int) -> None:
        """Add the record of an example of so many tokens."""
        assert len(packed) % ALIGNMENT == 0, "records would not be aligned"
        self._stream.write(packed)
        self._rows.append((sample, tokens, len(packed), zlib.crc32(packed)))
        self.num_bytes += len(packed)

    def close(self, left: Any = None, lost: Sequence[float] = NOTHING_LOST) -> None:
        """Make sure that all of it, and where it is, is on the disk.

        Args:
            left: From where to go on behind it, as JSON.
            lost: What was seen to be lost of predictions, and of how many.
        """
        self._stream.close()
        sync(self._file)
        unfinished = self._file.with_suffix(".unfinished")
        with unfinished.open("wb") as index:
            rows = np.array(self._rows, np.int64).reshape(-1, 4)
            left_as_bytes = np.frombuffer(json.dumps(left).encode(), np.uint8)
            np.savez(index, rows=rows, left=left_as_bytes, lost=np.array(lost))
        sync(unfinished)
        unfinished.replace(self._file.with_suffix(".npz"))


@dataclass(frozen=True)
class Part:
    """What a part that is whole holds."""

    rows: np.ndarray[Any, Any]
    """Of each record: the example, its tokens, bytes, and their checksum."""
    left: Any
    """From where to go on behind it."""
    lost: np.ndarray[Any, Any]
    """See :meth:`PartWriter.close`."""


def written(folder: Path, say: Callable[[str], None]) -> list[Part]:
    """What earlier attempts have written; what is not whole is removed, and ``say`` told of it. On one rank only.

    Raises:
        OSError: A file is there and cannot be read: it may be whole, and nothing is removed for that.
    """
    found: list[Part] = []
    for name in sorted({file.stem for file in folder.iterdir() if file.suffix in SUFFIXES}):
        try:
            found.append(read_part(folder, name))
            continue
        except FileNotFoundError as error:
            what = f"lacks {Path(error.filename).name}, as it was not finished"
        except ValueError as error:
            what = f"is damaged ({error})"
        say(f"teacher cache: {folder / name} {what}; it is removed, and what it held is asked for again")
        for suffix in SUFFIXES:
            (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    return found


def refuse_holes(samples: Sequence[np.ndarray[Any, Any]], counts: Sequence[int]) -> None:
    """Raise a ValueError that names examples, of so many in each lane, that are not among ``samples``."""
    steps = np.arange(max(counts, default=0))[:, None]
    expected = (steps * len(counts) + np.arange(len(counts)))[steps < np.array(counts)]
    missing = np.setdiff1d(expected, np.concatenate([np.zeros(0, np.int64), *samples]))
    if len(missing):
        named = ", ".join(map(str, missing[:MOST_NAMED].tolist()))
        more = ", ..." if len(missing) > MOST_NAMED else ""
        raise ValueError(f"{len(missing):,} of {len(expected):,} examples are not there: {named}{more}")


def read_part(folder: Path, name: str) -> Part:
    """What a part holds.

    Raises:
        FileNotFoundError: It was not finished.
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    part = _read_index(folder / f"{name}.npz")
    there, described = (folder / f"{name}.bin").stat().st_size, int(part.rows[:, 2].sum())
    if there != described:
        raise ValueError(f"{name}.bin has {there} bytes, its index describes {described}")
    return part


def _read_index(file: Path) -> Part:
    content = file.read_bytes()
    try:  # of what is in memory, whatever is raised is for a damage: a bit may raise anything in there
        with np.load(io.BytesIO(content), allow_pickle=False) as index:
            return Part(index["rows"].reshape(-1, 4), json.loads(index["left"].tobytes()), index["lost"])
    except Exception as error:
        raise ValueError(f"{file.name}: {error}") from error
