"""Phases of a run: each leaves a folder with a completion manifest, so that running again skips what is done.

A phase folder is written beside its place and renamed when it is whole: it is there completely, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ted_ds.errors import CheckpointError
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.models.sentencepiece_model import MODEL_FILE
from ted_ds.models.tensor_files import weight_files
from ted_ds.models.tokenizer_files import TOKENIZER_FILE

MANIFEST = "phase.json"
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(place: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk: a cut of power does not lose them."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_identity(folder: Path) -> dict[str, str]:
    """What names a model that is not ours to copy: its path and a hash over its config, tokenizer and weights."""
    digest = hashlib.sha256()
    described = [file for file in (folder / CONFIG_FILE, folder / TOKENIZER_FILE) if file.is_file()]
    if not (folder / TOKENIZER_FILE).is_file() and (folder / MODEL_FILE).is_file():
        described.append(folder / MODEL_FILE)
    for file in [*described, *weight_files(folder)]:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return {"path": str(folder), "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class PhaseFolder:
    """Where a phase puts its result, and what that result depends on."""

    path: Path
    inputs: dict[str, Any]
    """Everything that decides the result: recipe values, and identities of the models that went in."""
    begun: float = field(default_factory=time.monotonic, compare=False)
    """When this process turned to the phase, by its clock."""

    def is_complete(self) -> bool:
        """Whether the phase was completed with the same inputs, and its files are still whole.

        Raises:
            CheckpointError: It was completed with other inputs, a file was damaged since, or something else is there.
        """
        if not self.path.exists():
            return False
        if not (self.path / MANIFEST).is_file():
            raise CheckpointError(f"{self.path}: is in the way, and no completed phase; move it away")
        manifest = self._manifest()
        differing = differences(manifest["inputs"], json.loads(json.dumps(self.inputs)))
        if differing:
            raise CheckpointError(
                f"{self.path}: was completed with other settings: {'; '.join(differing[:5])}. "
                "Remove this folder and those of later phases to do it again, or choose another output_dir"
            )
        for name, (size, digest) in manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size or file_sha256(file) != digest:
                raise CheckpointError(f"{file}: changed or missing since its phase was completed; remove {self.path}")
        return True

    def result(self) -> dict[str, Any]:
        """What the completed phase reported.

        Raises:
            CheckpointError: Its manifest is damaged.
        """
        return self._manifest()["result"]

    def _manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            return {"inputs": manifest["inputs"], "files": manifest["files"], "result": manifest["result"]}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path / MANIFEST}: damaged ({error!r}); remove {self.path}") from error

    def write(self, work: Callable[[Path], dict[str, Any]]) -> None:
        """Let ``work`` fill a fresh folder and report a result, then put it in place. On one rank only."""
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            result = work(unfinished)
            files = sorted(file for file in unfinished.rglob("*") if file.is_file())
            listed = {str(f.relative_to(unfinished)): (f.stat().st_size, file_sha256(f)) for f in files}
            manifest = {"inputs": self.inputs, "files": listed, "result": result}
            manifest["seconds"] = round(time.monotonic() - self.begun, 3)
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for place in (*unfinished.rglob("*"), unfinished):  # its checkpoints are removed after it
                sync(place)
            unfinished.replace(self.path)
            sync(self.path.parent)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
            raise CheckpointError(f"{self.path}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def differences(old: Any, new: Any) -> list[str]:
    """What differs between two nested dicts of inputs, in words: settings first, then what files hold.

    Models are the same by their hash, wherever they are. Of a hash, its beginning is enough to tell two apart.
    """
    found = sorted(_differences(old, new, ""), key=lambda difference: HASH.search(difference) is not None)
    return [HASH.sub(r"\1...", difference) for difference in found]


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        if "sha256" in old and "sha256" in new:
            if old["sha256"] != new["sha256"]:
                yield f"{path} was {_model(old)}, now {_model(new)}"
            return
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {old!r}, now {new!r}"


def _model(identity: Mapping[str, str]) -> str:
    return f"{identity.get('path', '?')} (SHA-256 {identity['sha256']})"
