"""The files of a cache: one record per example, in parts that ranks wrote.

A part counts once its index is there, which has a checksum of each record. A cache is written beside its place, over as
many attempts as it takes, and renamed when it is whole: it is there completely, or not at all.
"""

from __future__ import annotations

import errno
import io
import json
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import sync
from ted_ds.teacher_cache.open_parts import OpenParts
from ted_ds.teacher_cache.states import as_bytes, pack_states, size_of_states, unpack_states

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MANIFEST = "cache.json"
VERSION = 3
"""Of these files."""
ALIGNMENT = 8
NUMBER_BYTES = 4
DAMAGED = (FileNotFoundError, ValueError, KeyError, TypeError)
"""What reading a file raises that is missing or damaged; not what a disk or a server raises that fails to give it."""
NOTHING_LOST = (0.0, 0.0, 0.0)
REFILLED = "remove it, and it is filled again"
LEFT_AS_IT_IS = "it is left as it is: mend that, and start the same command again"
MOST_NAMED = 5
"""Examples that are missing, in a message."""
Form = TypeVar("Form", bound="DataclassInstance")
"""How what is kept of an example stands in a file."""


def aligned(size: int) -> int:
    """The end of so many bytes, where others may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padded(packed: bytes) -> bytes:
    """Bytes up to there."""
    return packed.ljust(aligned(len(packed)), b"\0")


@dataclass(frozen=True)
class Record:
    """What is kept of an example: outputs in fp32, a state per matched layer and token in fewer bits."""

    num_layers: int
    dim: int
    """Of a filtered state."""
    num_outputs: int
    """Of the teacher's predictions; 0 where nobody asks for them."""
    precision: str
    """``bf16``, or ``int8`` with a scale per token."""

    def num_bytes(self, tokens: int) -> int:
        """Of a text of so many tokens, in the file."""
        states = size_of_states((self.num_layers, tokens, self.dim), self.precision)
        return aligned(self.num_outputs * NUMBER_BYTES + states)

    def pack(self, outputs: Float[Tensor, " outputs"] | None, states: Sequence[Float[Tensor, "tokens dim"]]) -> bytes:
        """The record of an example."""
        whole = b"" if outputs is None else as_bytes(outputs.float())
        return padded(whole + pack_states(torch.stack(list(states)), self.precision) if states else whole)

    def unpack(
        self, record: np.ndarray[Any, Any], tokens: int
    ) -> tuple[Float[Tensor, " outputs"], Float[Tensor, "layers tokens dim"]]:
        """Outputs in fp32, and states in fp32 or bf16, of a record's bytes."""
        shape, start = (self.num_layers, tokens, self.dim), self.num_outputs * NUMBER_BYTES
        outputs = torch.from_numpy(record[:start].view(np.float32).copy())
        stored = record[start : start + size_of_states(shape, self.precision)]
        return outputs, unpack_states(stored, shape, self.precision)


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
            found.append(_read_part(folder, name))
            continue
        except FileNotFoundError as error:
            what = f"lacks {Path(error.filename).name}, as it was not finished"
        except ValueError as error:
            what = f"is damaged ({error})"
        say(f"teacher cache: {folder / name} {what}; it is removed, and what it held is asked for again")
        for suffix in SUFFIXES:
            (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    return found


def finish(folder: Path, place: Path, record: Any, *, about: dict[str, Any], counts: Sequence[int]) -> None:
    """Put a cache that all ranks have written into ``folder`` in its place. On one rank only.

    Args:
        folder: Where it was written.
        place: Its place.
        record: How what is kept of an example stands in its files.
        about: What decides what is in it.
        counts: How many examples each lane has; those of a set are one lane. Example i of lane l is the l-th of the
            i-th step: number i len(counts) + l.

    Raises:
        CheckpointError: An example is not there; the folder is left as it is.
    """
    names = sorted(index.stem for index in folder.glob("*.npz"))
    try:
        _refuse_holes([_read_part(folder, name).rows[:, 0] for name in names], counts)
    except DAMAGED as error:
        raise CheckpointError(
            f"{folder}: the teacher's cache is not whole ({error}); start the same command again, and what is missing "
            "is asked for"
        ) from error
    manifest = {"version": VERSION, "about": about, "record": asdict(record), "counts": [*counts], "parts": names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)
    if not is_complete(place):
        shutil.rmtree(place, ignore_errors=True)
        try:
            folder.replace(place)
            sync(place.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another run was faster
                raise
    shutil.rmtree(folder, ignore_errors=True)


def _refuse_holes(samples: Sequence[np.ndarray[Any, Any]], counts: Sequence[int]) -> None:
    """Raise a ValueError that names examples, of so many in each lane, that are not among ``samples``."""
    steps = np.arange(max(counts, default=0))[:, None]
    expected = (steps * len(counts) + np.arange(len(counts)))[steps < np.array(counts)]
    missing = np.setdiff1d(expected, np.concatenate([np.zeros(0, np.int64), *samples]))
    if len(missing):
        named = ", ".join(map(str, missing[:MOST_NAMED].tolist()))
        more = ", ..." if len(missing) > MOST_NAMED else ""
        raise ValueError(f"{len(missing):,} of {len(expected):,} examples are not there: {named}{more}")


def is_complete(place: Path) -> bool:
    """Whether there is a whole cache.

    Raises:
        OSError: It cannot be told.
    """
    try:
        (place / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_about(place: Path) -> dict[str, Any]:
    """What a whole cache says of itself; nothing where there is none, or it is damaged or cannot be read."""
    try:
        return dict(json.loads((place / MANIFEST).read_text(encoding="utf-8"))["about"])
    except (OSError, *DAMAGED):
        return {}


class Reader(Generic[Form]):
    """Reads records of a whole cache, in any order."""

    def __init__(self, place: Path, record: Form) -> None:
        """Open it.

        Raises:
            CheckpointError: A file is missing or damaged, or cannot be read.
        """
        self.record, self.place = record, place
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if manifest["version"] != VERSION:
                raise CheckpointError(
                    f"{place}: the files of the teacher's cache are of version {manifest['version']}, and this ted_ds "
                    f"reads version {VERSION}; use the ted_ds that wrote it, or {REFILLED}"
                )
            if manifest["record"] != asdict(record):
                raise ValueError(f"its records are {manifest['record']}")
            parts = [_read_part(place, name) for name in manifest["parts"]]
            _refuse_holes([part.rows[:, 0] for part in parts], manifest["counts"])
        except DAMAGED as error:
            raise CheckpointError(f"{place}: the teacher's cache is damaged ({error}); {REFILLED}") from error
        except OSError as error:
            raise CheckpointError(f"{place}: the teacher's cache cannot be read ({error}); {LEFT_AS_IT_IS}") from error
        self._parts = OpenParts([place / f"{name}.bin" for name in manifest["parts"]])
        tables = [_table(part, number) for number, part in enumerate(parts)]
        table = np.concatenate([np.zeros((0, 6), np.int64), *tables])
        # of an example that two attempts have written, either
        self.samples, first = np.unique(table[:, 0], return_index=True)
        """Those that are there, in order."""
        self._table = table[first]

        self.lost = np.sum([np.zeros(len(NOTHING_LOST)), *(part.lost for part in parts)], axis=0)
        """What was seen to be lost of predictions, and of how many."""

    def read(self, sample: int) -> tuple[np.ndarray[Any, Any], int]:
        """The record of an example, and how many tokens it has.

        Raises:
            CheckpointError: It is not there, or not what was written, or cannot be read.
        """
        index = int(np.searchsorted(self.samples, sample))
        if index == len(self.samples) or self.samples[index] != sample:
            raise CheckpointError(f"{self.place}: the teacher's cache lacks example {sample}; {REFILLED}")
        _, tokens, size, checksum, part, start = self._table[index].tolist()
        try:
            record = self._parts.read(part, start, size)
        except OSError as error:
            raise CheckpointError(
                f"{self.place}: the teacher's cache cannot be read ({error}); {LEFT_AS_IT_IS}"
            ) from error
        if zlib.crc32(record) != checksum:
            raise CheckpointError(
                f"{self.place}: the teacher's cache is damaged (example {sample} is not what was written); {REFILLED}"
            )
        return np.frombuffer(record, np.uint8), tokens

    @property
    def num_bytes(self) -> int:
        """Of all records."""
        return int(self._table[:, 2].sum())

    @property
    def num_tokens(self) -> int:
        """Of all examples."""
        return int(self._table[:, 1].sum())

    def __len__(self) -> int:
        return len(self.samples)


def _table(part: Part, number: int) -> np.ndarray[Any, Any]:
    """Of each record: the example, its tokens, bytes, their checksum, the part, and its first byte there."""
    sizes = part.rows[:, 2]
    return np.column_stack([part.rows, np.full(len(sizes), number), sizes.cumsum() - sizes])


def _read_part(folder: Path, name: str) -> Part:
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
