"""The files of a cache: one record per example, in parts that ranks wrote.

A part counts once its index is there, which has a checksum of each record. A cache is written beside its place, over as
many attempts as it takes, and renamed when it is whole: it is there completely, or not at all.
"""

from __future__ import annotations

import errno
import json
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
from ted_ds.teacher_cache.parts import ALIGNMENT, NOTHING_LOST, Part, read_part, refuse_holes
from ted_ds.teacher_cache.states import as_bytes, pack_states, size_of_states, unpack_states

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MANIFEST = "cache.json"
VERSION = 3
"""Of these files."""
NUMBER_BYTES = 4
DAMAGED = (FileNotFoundError, ValueError, KeyError, TypeError)
"""What reading a file raises that is missing or damaged; not what a disk or a server raises that fails to give it."""
REFILLED = "remove it, and it is filled again"
LEFT_AS_IT_IS = "it is left as it is: mend that, and start the same command again"
Result = TypeVar("Result")
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
        refuse_holes([read_part(folder, name).rows[:, 0] for name in names], counts)
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
            parts = [read_part(place, name) for name in manifest["parts"]]
            refuse_holes([part.rows[:, 0] for part in parts], manifest["counts"])
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
        row = self._row(sample)
        if row is None:
            raise CheckpointError(f"{self.place}: the teacher's cache lacks example {sample}; {REFILLED}")
        _, tokens, size, checksum, part, start = row
        record = self._of_disk(lambda: self._parts.read(part, start, size))
        if zlib.crc32(record) != checksum:
            raise CheckpointError(
                f"{self.place}: the teacher's cache is damaged (example {sample} is not what was written); {REFILLED}"
            )
        return np.frombuffer(record, np.uint8), tokens

    def expect(self, sample: int) -> None:
        """Let the system fetch the record of an example, if there is one, before it is read.

        Raises:
            CheckpointError: Its file cannot be opened.
        """
        row = self._row(sample)
        if row is not None:
            _, _, size, _, part, start = row
            self._of_disk(lambda: self._parts.expect(part, start, size))

    def _row(self, sample: int) -> list[int] | None:
        """What :func:`_table` says of an example."""
        index = int(np.searchsorted(self.samples, sample))
        is_there = index < len(self.samples) and self.samples[index] == sample
        return self._table[index].tolist() if is_there else None

    def _of_disk(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except OSError as error:
            raise CheckpointError(
                f"{self.place}: the teacher's cache cannot be read ({error}); {LEFT_AS_IT_IS}"
            ) from error

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
