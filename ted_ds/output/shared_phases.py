"""Phases that several runs have in common: one does them, the others take its result (``shared_phases``).

A result is known by what it depends on: the phase's inputs, as its manifest has them. Files are linked, not copied,
where the file system can.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ted_ds.errors import CheckpointError
from ted_ds.launching.processes import Process
from ted_ds.output.phase_folder import MANIFEST, PhaseFolder, sync

HASH_LENGTH = 16
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
Claim = Literal["taken", "own", "wait"]
"""Of a phase: its result was taken from another run, this run is to do it, or another one is at it."""


def key_of(inputs: Any) -> str:
    """What inputs are known by: models by their hash, wherever they are, as manifests are compared."""
    text = json.dumps(_without_places(json.loads(json.dumps(inputs))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {"sha256": value["sha256"]} if "sha256" in value else value
        return {key: _without_places(one) for key, one in kept.items()}
    return [_without_places(one) for one in value] if isinstance(value, list) else value


class SharedPhases:
    """A folder of results. On one rank only."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not be there."""
        self._folder = folder

    def place(self, phase: PhaseFolder) -> Path:
        """Where the result of a phase is, or would be."""
        return self._folder / f"{phase.path.name}-{key_of(phase.inputs)}"

    def claim(self, phase: PhaseFolder) -> Claim:
        """Take the result of a phase, or the right to do it; to be called again where another run is at it.

        One that works on another machine cannot be watched and is not waited for: then two may do the same.

        Raises:
            CheckpointError: The result was damaged, or the folder cannot be written.
        """
        shared = PhaseFolder(self.place(phase), phase.inputs)
        try:
            if shared.is_complete():
                _link(shared.path, phase.path)
                return "taken"
            self._folder.mkdir(parents=True, exist_ok=True)
            return "own" if self._take_over(self._sign(phase)) else "wait"
        except OSError as error:
            raise CheckpointError(f"shared_phases: {self._folder}: cannot be written: {error}") from error

    def give(self, phase: PhaseFolder) -> None:
        """Let others have the result of a phase that this run has done.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            if not self.place(phase).exists():
                _link(phase.path, self.place(phase))
        except OSError as error:
            raise CheckpointError(f"shared_phases: {self._folder}: cannot be written: {error}") from error

    def release(self, phase: PhaseFolder) -> None:
        """Give up the right to do a phase."""
        sign = self._sign(phase)
        with contextlib.suppress(OSError):
            if _read(sign) == Process.own():
                sign.unlink()

    def _sign(self, phase: PhaseFolder) -> Path:
        """The file that says who is at a phase."""
        return self.place(phase).with_suffix(".claim")

    def _take_over(self, sign: Path) -> bool:
        """Put this process's name on a phase, unless another one has that lives."""
        beside = sign.with_name(f".{sign.name}.{os.getpid()}")
        beside.write_text(json.dumps(asdict(Process.own())) + "\n", encoding="utf-8")
        try:
            os.link(beside, sign)
        except FileExistsError:
            owner = _read(sign)
            if owner is not None and owner != Process.own() and owner.lives():
                return False
            beside.replace(sign)
        finally:
            beside.unlink(missing_ok=True)
        return _read(sign) == Process.own()


def _read(sign: Path) -> Process | None:
    """Who is at a phase; None where nobody is, or the file cannot be read just now."""
    try:
        return Process(**json.loads(sign.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _link(source: Path, target: Path) -> None:
    """Have a phase's folder in another place, too: there completely, or not at all."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for file in sorted(source.rglob("*")):
            place = unfinished / file.relative_to(source)
            if file.is_dir():
                place.mkdir()
            elif file.name == MANIFEST and file.parent == source:
                shutil.copyfile(file, place)
            else:
                _link_file(file, place)
        sync(unfinished)
        try:
            unfinished.replace(target)
        except OSError:
            if not (target / MANIFEST).is_file():  # else another run was quicker, with the same
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _link_file(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(file, place)
