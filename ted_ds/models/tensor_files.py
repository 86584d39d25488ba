"""The safetensors files of a model folder: which they are, and what is in them by their headers. Without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from ted_ds.errors import CheckpointError
from ted_ds.models.folder import INDEX_FILE, WEIGHTS_FILE, no_weights
from ted_ds.models.model_file import read_json, refuse_pointer
from ted_ds.models.packed import Stored

MAX_HEADER_BYTES = 100_000_000
READ_AT_ONCE = 1 << 24


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a model, as transformers chooses them: ``model.safetensors``, or the index's.

    (Some hub folders hold the same weights once more in another naming.)

    Raises:
        CheckpointError: There are none, or the index is damaged or names a missing file.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    files = sorted({folder / name for name in _read_index(folder).values()})
    if not files:
        raise CheckpointError(f"{folder}: {no_weights(folder)}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, but {INDEX_FILE} names it")
    return files


def _read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor, as the index says; empty where there is none, or no need for one."""
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        return {}
    try:
        weight_map = dict(read_json(index)["weight_map"])
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: damaged ({error!r}); copy it again") from error
    return weight_map


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model; makes sure that its files are whole and hold what the index says."""
    of_files = {file.name: read_header(file) for file in weight_files(folder)}
    for name, file in _read_index(folder).items():
        if name not in of_files[file]:
            raise CheckpointError(
                f"{folder / INDEX_FILE}: says that {name} is in {file}, which has no such tensor; copy both again"
            )
    return {name: tensor for tensors in of_files.values() for name, tensor in tensors.items()}


def read_ahead(folder: Path, most_bytes: int) -> None:
    """Bring a model's weights into the system's memory of files, where the ranks of a host then find them.

    Nothing is read if they are larger than ``most_bytes``: the first would be gone before the last came.
    """
    files = weight_files(folder)
    if sum(file.stat().st_size for file in files) > most_bytes:
        return
    for file in files:
        with file.open("rb", buffering=0) as weights:
            while weights.read(READ_AT_ONCE):
                pass


def read_header(file: Path) -> dict[str, Stored]:
    """A file's tensors; makes sure that it is whole."""
    refuse_pointer(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as weights:
            (header_size,) = struct.unpack("<Q", weights.read(8))
            if not 0 < header_size <= min(size, MAX_HEADER_BYTES):
                raise ValueError("impossible header size")
            header = json.loads(weights.read(header_size))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {name: Stored(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error})") from error
    if size != 8 + header_size + end:
        raise CheckpointError(
            f"{file}: {size} bytes, but its header describes {8 + header_size + end}; it is damaged: copy it again"
        )
    return tensors
