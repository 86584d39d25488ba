"""The checkpoints of one phase on disk: names, manifests, verification, retention. Files only; one rank writes.

    checkpoints/distill/
        latest                       the newest one's name, written last
        step_00000100/
            manifest.json            size and SHA-256 of every other file, and of itself
            ...
        .step_00000200.unfinished/   being written; the next start removes it

A checkpoint is renamed into its place when all of it is on the disk: a folder of the first kind without a sound
manifest was damaged later.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError, OtherVersionError, counted
from ted_ds.output.phase_folder import file_sha256, sync

MANIFEST_FILE = "manifest.json"
LATEST_FILE = "latest"
VERSION = 1
NAME = re.compile(r"step_(\d{8,})$")


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    keep_last: int
    """This many of the newest."""
    keep_every_steps: int | None = None
    """And those of every so many steps."""
    keep_best: bool = True
    """And that with the best held-out score."""

    def kept(self, steps: Collection[int], best: int | None) -> set[int]:
        """Of these steps those to keep; always the newest."""
        newest = sorted(steps)[-max(self.keep_last, 1) :]
        return {*newest, *self.archived(steps, best)}

    def archived(self, steps: Collection[int], best: int | None) -> set[int]:
        """Of these steps those to keep also when their phase is complete."""
        every = self.keep_every_steps
        return {s for s in steps if (every and s % every == 0) or (self.keep_best and s == best)}


class CheckpointFolders:
    """The folders of one phase's checkpoints."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        """Where the checkpoint after ``step`` is."""
        return self.root / f"step_{step:08d}"

    def unfinished(self, step: int) -> Path:
        """Where it is while it is written."""
        return self.root / f".{self.path(step).name}.unfinished"

    def steps(self) -> list[int]:
        """Those that are there, damaged or not, ascending."""
        if not self.root.is_dir():
            return []
        found = (NAME.match(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in found if match)

    def latest_fault(self) -> str | None:
        """What is wrong with the file that names the newest checkpoint; it is for people and tools, nothing reads it.

        It may be one behind: it is written after the checkpoint it names.
        """
        file = self.root / LATEST_FILE
        steps = self.steps()
        if not steps:
            return None
        if not file.is_file():
            return f"{file}: is missing"
        if file.read_bytes() not in [f"{self.path(step).name}\n".encode() for step in steps]:
            return f"{file}: names no checkpoint that is here"
        return None

    # --- writing ----------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove what an interrupted run left half written or half removed."""
        if self.root.is_dir():
            for entry in self.root.glob(".*.replaced"):  # killed between two renames: the old one is still good
                place = entry.with_name(entry.name[1:].removesuffix(".replaced"))
                if not place.exists():
                    entry.replace(place)
            for entry in self.root.iterdir():
                if entry.name.startswith(".") and entry.is_dir():
                    shutil.rmtree(entry)

    def begin(self, step: int) -> Path:
        """A fresh folder to write into.

        Raises:
            CheckpointError: It cannot be made.
        """
        folder = self.unfinished(step)
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(cannot_write(self.path(step), error)) from error
        return folder

    def commit(self, step: int, known: Mapping[str, FileRecord], about: Mapping[str, Any]) -> None:
        """Put a written checkpoint in its place.

        Args:
            step: The step it was taken after.
            known: What its writers know to have written, by path in the folder; other files are read and added.
            about: What else the manifest says.

        Raises:
            CheckpointError: A file is not as it was written, or the disk refuses.
        """
        folder = self.unfinished(step)
        try:
            files = dict(known)
            for name in _files_in(folder):
                if name not in files:
                    sync(folder / name)
                    files[name] = FileRecord((folder / name).stat().st_size, file_sha256(folder / name))
            wrong = [name for name in known if _size_of(folder / name) != known[name].num_bytes]
            if wrong:
                raise CheckpointError(f"{folder}: {', '.join(sorted(wrong))} did not arrive whole on the disk")
            content = {
                **about,
                "version": VERSION,
                "step": step,
                "files": {name: [record.num_bytes, record.sha256] for name, record in sorted(files.items())},
            }
            self.adopt(step, _manifest_text(content))
        except OSError as error:
            raise CheckpointError(cannot_write(self.path(step), error)) from error

    def adopt(self, step: int, manifest: str) -> None:
        """Put what :meth:`begin` made room for in its place; ``manifest`` describes what is there by now.

        Raises:
            OSError: The disk refuses.
        """
        folder = self.unfinished(step)
        write_durably(folder / MANIFEST_FILE, manifest)
        for place in {folder, *(path.parent for path in folder.rglob("*"))}:
            sync(place)
        replaced = self.root / f".{self.path(step).name}.replaced"
        if self.path(step).exists():
            self.path(step).replace(replaced)
        folder.replace(self.path(step))
        sync(self.root)
        self._name_latest(step)
        shutil.rmtree(replaced, ignore_errors=True)

    def prune(self, keep: Collection[int]) -> None:
        """Remove the others. At least one must be kept."""
        steps = self.steps()
        kept = [step for step in steps if step in keep]
        if kept[-1] != steps[-1]:
            self._name_latest(kept[-1])
        for step in set(steps) - set(kept):
            self._remove(step)

    def _name_latest(self, step: int) -> None:
        beside = self.root / f".{LATEST_FILE}"
        write_durably(beside, self.path(step).name + "\n")
        beside.replace(self.root / LATEST_FILE)
        sync(self.root)

    def remove_all(self) -> None:
        """Remove the whole folder."""
        if self.root.is_dir():
            shutil.rmtree(self.root)

    def _remove(self, step: int) -> None:
        folder = self.path(step)
        if folder.is_dir():
            doomed = folder.with_name(f".{folder.name}.removing")  # at once, so that no half of it is ever seen
            folder.replace(doomed)
            shutil.rmtree(doomed)

    def put_aside(self, step: int) -> Path:
        """Give a damaged one a name that is no checkpoint's, and remove nothing; returns where it is."""
        folder = self.path(step)
        names = (f"{folder.name}.damaged{'' if number == 1 else f'.{number}'}" for number in itertools.count(1))
        return folder.replace(next(one for name in names if not (one := folder.with_name(name)).exists()))

    # --- reading ----------------------------------------------------------------------------------------------------

    def manifest(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself; read a second time before it is doubted.

        Raises:
            OtherVersionError: It is of another version.
            CheckpointError: It is missing or damaged.
        """
        try:
            return self._manifest(step)
        except OtherVersionError:
            raise
        except CheckpointError:  # a disk behind a network may have answered wrongly once
            return self._manifest(step)

    def _manifest(self, step: int) -> dict[str, Any]:
        file = self.path(step) / MANIFEST_FILE
        try:
            text = file.read_bytes().decode()
        except FileNotFoundError:
            raise CheckpointError(f"{file}: is missing") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: is damaged ({error!r})") from error
        return read_manifest(text, step, str(file))

    def faults(self, step: int, *, part: int = 0, num_parts: int = 1) -> list[str]:
        """What is wrong with a checkpoint: missing, changed and unlisted files. Reads every byte of its share.

        Args:
            step: Which.
            part: Which share of the files to read.
            num_parts: How many shares there are.

        Raises:
            OtherVersionError: It is of another version, which is no fault.
        """
        folder = self.path(step)
        try:
            listed: Mapping[str, FileRecord] = self.manifest(step)["files"]
        except OtherVersionError:
            raise
        except CheckpointError as error:
            return [str(error)]
        found = []
        by_size = sorted(listed, key=lambda name: (-listed[name].num_bytes, name))
        for name in by_size[part::num_parts]:
            fault = _fault_of(folder / name, listed[name]) and _fault_of(folder / name, listed[name])
            if fault:
                found.append(f"{folder / name}: {fault}")
        unlisted = [name for name in _files_in(folder) if name not in listed and name != MANIFEST_FILE]
        return found + [f"{folder / name}: is not in the manifest" for name in unlisted]


def read_manifest(text: str, step: int, place: str) -> dict[str, Any]:
    """What the manifest of the checkpoint after ``step`` says.

    Raises:
        OtherVersionError: It is whole, by its own checksum, and of another version; names its ``place``.
        CheckpointError: It is damaged; likewise.
    """
    try:
        content = json.loads(text)
        del content["sha256"]
        is_sound = text == _manifest_text(content)
        version = content["version"]
        if is_sound and version != VERSION:  # whose other entries are not known here
            raise OtherVersionError(
                f"{place}: has version {version}; this ted_ds reads version {VERSION}. Nothing was removed or changed: "
                "start it with the ted_ds that wrote it, or move the phase's checkpoints away to start the phase anew"
            )
        files = {name: FileRecord(*record) for name, record in content["files"].items()}
        of_step = content["step"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place}: is damaged ({error!r})") from error
    if not is_sound:
        raise CheckpointError(f"{place}: is damaged (its own checksum differs)")
    if of_step != step:
        raise CheckpointError(f"{place}: is that of step {of_step}")
    outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"{place}: names a file outside its folder ({outside[0]})")
    return {**content, "files": files}


def cannot_write(place: Path, error: BaseException) -> str:
    """The message of a write that failed, whatever the reason."""
    return (
        f"{place}: cannot be written: {error}. Checkpoints that were there are untouched; make room or mend the disk, "
        "and start the same command again to go on from the newest"
    )


def write_durably(file: Path, text: str) -> None:
    """Write a small file and wait until the disk has it."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _fault_of(file: Path, record: FileRecord) -> str | None:
    try:
        size = _size_of(file)
        if size is None:
            return "is missing"
        if size != record.num_bytes:
            return f"has {counted(size, 'byte')}, not {record.num_bytes:,}"
        return None if file_sha256(file) == record.sha256 else "its SHA-256 differs"
    except OSError as error:
        return f"cannot be read ({error})"


def _size_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _files_in(folder: Path) -> Iterator[str]:
    return (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def _manifest_text(content: Mapping[str, Any]) -> str:
    """With a checksum of its own: a digit that flips in it is seen like one in any other file."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1) + "\n"
