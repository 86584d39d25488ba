"""The files of one rank: copied where they are, written and hashed by a thread while training goes on.

DeepSpeed decides what goes into which file; it calls a *checkpoint engine* to write each. This one only takes a copy.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import Tensor
from torch.utils import _pytree as pytree

from ted_ds.runtime.checkpoints.folders import FileRecord


class SnapshotEngine(CheckpointEngine):
    """DeepSpeed's interface to storage: keeps copies of what should be saved, until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: dict[Path, Any] = {}

    # pyright takes DeepSpeed's bodies for its types: always True, nothing returned
    def preserves_storage_sharing(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not as DeepSpeed means it, which then copies every tensor first: copies share what the originals do."""
        return False

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def save(self, state_dict: Any, path: str) -> None:
        """Copy to the host."""
        self._taken[Path(path)] = snapshot(state_dict)

    def take(self) -> dict[Path, Any]:
        """What was saved since the last call, by file."""
        taken, self._taken = self._taken, {}
        return taken

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file; whoever asks has verified it against the manifest."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        info: CheckpointCommitInfo,  # noqa: ARG002 - DeepSpeed calls it by this name
    ) -> bool:
        """Left to the manifest."""
        return True


def snapshot(state: Any) -> Any:
    """A copy on the host that later steps do not change; tensors that share memory still do."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    replaced: dict[int, Tensor] = {}
    originals = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    for tensor in originals:
        key = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if tensor.numel() == 0 or key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        replaced[id(tensor)] = copies[key]
    # what else is there (loss scalers, settings) is copied by Python, which finds the tensors done
    return copy.deepcopy(state, dict(replaced))


class BackgroundWrite:
    """The writing of one rank's files, in a thread of its own."""

    def __init__(self, states: Mapping[Path, Any], texts: Mapping[Path, str]) -> None:
        """Begin. ``states`` are written by ``torch.save``, ``texts`` as they are."""
        self._states, self._texts = dict(states), dict(texts)
        self._records: dict[Path, FileRecord] = {}
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False where it did not come."""
        self._thread.join(timeout_s)
        return self.is_done

    def records(self) -> dict[Path, FileRecord]:
        """What was written."""
        return dict(self._records)

    def _write(self) -> None:
        try:
            for file, text in self._texts.items():
                self._records[file] = _write_file(file, text)
            for file in [*self._states]:
                self._records[file] = _write_file(file, self._states.pop(file))  # and free it
        except Exception as error:  # torch reports a full disk as RuntimeError; whatever it is, the loop raises it
            self.failure = error


def _write_file(file: Path, content: Any) -> FileRecord:
    with file.open("wb") as stream:
        hashed = _HashedStream(stream)
        if isinstance(content, str):
            hashed.write(content.encode())
        else:
            file_like: Any = hashed  # torch asks for no more than write and flush
            torch.save(content, file_like)
        stream.flush()
        os.fsync(stream.fileno())
    return FileRecord(hashed.num_bytes, hashed.sha256.hexdigest())


class _HashedStream:
    """Hashes what passes through: the hash is that of what was meant to be written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256, self.num_bytes = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write and hash."""
        self._stream.write(data)
        self.sha256.update(data)
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Pass on."""
        self._stream.flush()


def relative(records: Mapping[Path, FileRecord], folder: Path) -> Iterator[tuple[str, FileRecord]]:
    """Records by their path in a folder."""
    return ((str(file.relative_to(folder)), record) for file, record in records.items())
