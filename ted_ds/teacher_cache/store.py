"""The files of a cache: one record per example, in parts that ranks wrote, read through memory maps.

A part counts once its index is there, which has a checksum of each record. A cache is written beside its place, over as
many attempts as it takes, and renamed when it is whole: it is there completely, or not at all.
"""

from __future__ import annotations

import errno
import json
import secrets
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import sync
from ted_ds.teacher_cache.states import as_bytes, pack_states, size_of_states, unpack_states

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MANIFEST = "cache.json"
VERSION = 2
"""Of these files."""
ALIGNMENT = 8
NUMBER_BYTES = 4
DAMAGED = (OSError, ValueError, KeyError, TypeError, BadZipFile)
"""What reading a file raises that is missing or damaged."""
NOTHING_LOST = (0.0, 0.0, 0.0)
REFILLED = "remove it, and it is filled again"
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


def written(folder: Path) -> list[Part]:
    """What earlier attempts have written; what they left without an index is removed. On one rank only."""
    found: list[Part] = []
    for part in sorted(folder.glob("*.bin")):
        index = part.with_suffix(".npz")
        try:
            found.append(_read_index(index))
        except DAMAGED:
            index.unlink(missing_ok=True)
            part.unlink()
    return found


def finish(folder: Path, place: Path, record: Any, *, about: dict[str, Any]) -> None:
    """Put a cache that all ranks have written into ``folder`` in its place. On one rank only."""
    parts = sorted(index.stem for index in folder.glob("*.npz"))
    manifest = {"version": VERSION, "about": about, "record": asdict(record), "parts": parts}
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


def is_complete(place: Path) -> bool:
    """Whether there is a whole cache."""
    return (place / MANIFEST).is_file()


def read_about(place: Path) -> dict[str, Any]:
    """What a whole cache says of itself; nothing where it is damaged."""
    try:
        return dict(json.loads((place / MANIFEST).read_text(encoding="utf-8"))["about"])
    except DAMAGED:
        return {}


class Reader(Generic[Form]):
    """Reads records of a whole cache, in any order."""

    def __init__(self, place: Path, record: Form) -> None:
        """Open it.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        self.record, self.place = record, place
        self._parts: list[np.ndarray[Any, Any]] = []
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if manifest["version"] != VERSION:
                raise ValueError(f"its files are of version {manifest['version']}, these are read: {VERSION}")
            if manifest["record"] != asdict(record):
                raise ValueError(f"its records are {manifest['record']}")
            parts = {name: _read_index(place / f"{name}.npz") for name in manifest["parts"]}
            tables = [self._open(place / f"{name}.bin", part.rows) for name, part in parts.items()]
        except DAMAGED as error:
            raise CheckpointError(f"{place}: the teacher's cache is damaged ({error}); {REFILLED}") from error
        table = np.concatenate([np.zeros((0, 6), np.int64), *tables])
        # of an example that two attempts have written, either
        self.samples, first = np.unique(table[:, 0], return_index=True)
        """Those that are there, in order."""
        self._table = table[first]

        self.lost = np.sum([np.zeros(len(NOTHING_LOST)), *(part.lost for part in parts.values())], axis=0)
        """What was seen to be lost of predictions, and of how many."""

    def _open(self, part: Path, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of each record: the example, its tokens, bytes, their checksum, the part, and its first byte there."""
        ends = rows[:, 2].cumsum()
        size = int(ends[-1]) if len(ends) else 0
        if part.stat().st_size != size:
            raise ValueError(f"{part.name} has {part.stat().st_size} bytes, its index describes {size}")
        self._parts.append(np.memmap(part, np.uint8, mode="r") if size else np.zeros(0, np.uint8))
        of_part = np.full(len(rows), len(self._parts) - 1)
        return np.column_stack([rows, of_part, ends - rows[:, 2]])

    def read(self, sample: int) -> tuple[np.ndarray[Any, Any], int]:
        """The record of an example, and how many tokens it has.

        Raises:
            CheckpointError: It is not there, or not what was written.
        """
        index = int(np.searchsorted(self.samples, sample))
        if index == len(self.samples) or self.samples[index] != sample:
            raise CheckpointError(f"{self.place}: the teacher's cache lacks example {sample}; {REFILLED}")
        _, tokens, size, checksum, part, start = self._table[index].tolist()
        record = self._parts[part][start : start + size]
        if zlib.crc32(record) != checksum:
            raise CheckpointError(
                f"{self.place}: the teacher's cache is damaged (example {sample} is not what was written); {REFILLED}"
            )
        return record, tokens

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


def _read_index(file: Path) -> Part:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as index:
        return Part(index["rows"], json.loads(index["left"].tobytes()), index["lost"])
