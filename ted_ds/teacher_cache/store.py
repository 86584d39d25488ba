"""The files of a cache: one record per example, in parts that ranks wrote, read through memory maps.

A part counts once its index is there. A cache is written beside its place, over as many attempts as it takes, and
renamed when it is whole: it is there completely, or not at all.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import sync

MANIFEST = "cache.json"
ALIGNMENT = 8
NUMBER_BYTES, SCALE_BYTES = 4, 4
STATE_BYTES = {"bf16": 2, "int8": 1}
INT8_MAX = 127
DAMAGED = (OSError, ValueError, KeyError, TypeError, BadZipFile)
"""What reading a file raises that is missing or damaged."""


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
        size = self.num_outputs * NUMBER_BYTES + self._num_scales(tokens) * SCALE_BYTES
        size += self.num_layers * tokens * self.dim * STATE_BYTES[self.precision]
        return -(-size // ALIGNMENT) * ALIGNMENT

    def pack(self, outputs: Float[Tensor, " outputs"] | None, states: Sequence[Float[Tensor, "tokens dim"]]) -> bytes:
        """The record of an example."""
        parts = [] if outputs is None else [outputs.float()]
        if states:
            stacked = torch.stack(list(states)).float()
            if self.precision == "int8":
                scales = stacked.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
                parts += [scales, (stacked / scales).round().to(torch.int8)]
            else:
                parts.append(stacked.bfloat16().view(torch.int16))
        whole = b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)
        return whole.ljust(-(-len(whole) // ALIGNMENT) * ALIGNMENT, b"\0")

    def unpack(
        self, record: np.ndarray[Any, Any], tokens: int
    ) -> tuple[Float[Tensor, " outputs"], Float[Tensor, "layers tokens dim"]]:
        """Outputs in fp32, and states in fp32 or bf16, of a record's bytes."""
        ends = np.cumsum(
            [
                self.num_outputs * NUMBER_BYTES,
                self._num_scales(tokens) * SCALE_BYTES,
                self.num_layers * tokens * self.dim * STATE_BYTES[self.precision],
            ]
        )
        outputs = torch.from_numpy(record[: ends[0]].view(np.float32).copy())
        stored = record[ends[1] : ends[2]]
        shape = (self.num_layers, tokens, self.dim)
        if self.precision == "bf16":
            return outputs, torch.from_numpy(stored.view(np.int16).copy()).view(torch.bfloat16).reshape(shape)
        scales = torch.from_numpy(record[ends[0] : ends[1]].view(np.float32).copy()).reshape(*shape[:2], 1)
        return outputs, torch.from_numpy(stored.view(np.int8).copy()).reshape(shape) * scales

    def _num_scales(self, tokens: int) -> int:
        return self.num_layers * tokens if self.precision == "int8" else 0


class PartWriter:
    """Writes the records of one rank, one after the other, as a part with a name of its own."""

    def __init__(self, folder: Path, name: str, record: Record) -> None:
        self._record, self._file = record, folder / f"{name}.bin"
        self._stream = self._file.open("wb")
        self._samples: list[int] = []
        self._lengths: list[int] = []

    def add(self, sample: int, outputs: Tensor | None, states: Sequence[Tensor], *, tokens: int) -> None:
        """Add what the teacher says of an example of so many tokens."""
        packed = self._record.pack(outputs, states)
        assert len(packed) == self._record.num_bytes(tokens), "its shape is not the record's"
        self._stream.write(packed)
        self._samples.append(sample)
        self._lengths.append(tokens)

    def close(self) -> None:
        """Make sure that all of it, and where it is, is on the disk."""
        self._stream.close()
        sync(self._file)
        unfinished = self._file.with_suffix(".unfinished")
        with unfinished.open("wb") as index:
            np.savez(index, samples=np.array(self._samples, np.int64), lengths=np.array(self._lengths, np.int64))
        sync(unfinished)
        unfinished.replace(self._file.with_suffix(".npz"))


def written(folder: Path) -> set[int]:
    """The examples that earlier attempts have written; what they left without an index is removed. On one rank only."""
    found: set[int] = set()
    for part in folder.glob("*.bin"):
        index = part.with_suffix(".npz")
        try:
            found.update(_read_index(index)[0])
        except DAMAGED:
            index.unlink(missing_ok=True)
            part.unlink()
    return found


def finish(folder: Path, place: Path, record: Record, *, about: dict[str, Any]) -> None:
    """Put a cache that all ranks have written into ``folder`` in its place. On one rank only."""
    parts = sorted(index.stem for index in folder.glob("*.npz"))
    manifest = {"about": about, "record": asdict(record), "parts": parts}
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


class Reader:
    """Reads records of a whole cache, in any order."""

    def __init__(self, place: Path, record: Record) -> None:
        """Open it.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        self.record = record
        self._parts: list[np.ndarray[Any, Any]] = []
        self._where: dict[int, tuple[int, int, int]] = {}  # part, first byte, tokens
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if manifest["record"] != asdict(record):
                raise ValueError(f"its records are {manifest['record']}")
            for name in manifest["parts"]:
                self._open(place / f"{name}.bin")
        except DAMAGED as error:
            raise CheckpointError(
                f"{place}: the teacher's cache is damaged ({error}); remove it, and it is filled again"
            ) from error

    def _open(self, part: Path) -> None:
        samples, lengths = _read_index(part.with_suffix(".npz"))
        ends = np.cumsum([0, *map(self.record.num_bytes, lengths)]).tolist()
        if part.stat().st_size != ends[-1]:
            raise ValueError(f"{part.name} has {part.stat().st_size} bytes, its index describes {ends[-1]}")
        if not samples:
            return
        for sample, length, start in zip(samples, lengths, ends, strict=False):
            self._where[sample] = (len(self._parts), start, length)
        self._parts.append(np.memmap(part, np.uint8, mode="r"))

    def read(self, sample: int) -> tuple[Tensor, Tensor]:
        """Outputs ``[outputs]`` and states ``[layers, tokens, dim]`` of an example."""
        part, start, tokens = self._where[sample]
        return self.record.unpack(self._parts[part][start : start + self.record.num_bytes(tokens)], tokens)

    def __len__(self) -> int:
        return len(self._where)


def _read_index(file: Path) -> tuple[list[int], list[int]]:
    """The examples of a part, and their tokens."""
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as index:
        return index["samples"].tolist(), index["lengths"].tolist()
