"""The checkpoints of one phase at a store: the same names as on the disk, and a checkpoint is what has a manifest.

One rank lists and removes; each puts and fetches its own share of the files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import CheckpointError, OtherVersionError
from ted_ds.output.store import Patience, Store
from ted_ds.runtime.checkpoints.folders import MANIFEST_FILE, NAME, FileRecord, Retention, read_manifest


def step_folder(step: int) -> str:
    """What the checkpoint after a step is called."""
    return f"step_{step:08d}"


class StoredCheckpoints:
    """Those of a phase; each method tries as long as it is given patience for, and raises StoreError then."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.doubted: set[int] = set()
        """Steps whose checkpoints could not be read whole here, and were not put there anew since."""

    def name(self, step: int) -> str:
        """Where that of a step is, for messages."""
        return f"{self.store.name}/{step_folder(step)}"

    def steps(self, patience: Patience) -> list[int]:
        """Those that are there whole or were so, ascending."""
        return sorted(step for step, names in self._folders(patience).items() if _manifest_of(step) in names)

    def _folders(self, patience: Patience) -> dict[int, list[str]]:
        """The objects of every step, of which some may be missing."""
        sizes = patience.persist(f"{self.store.name}: listing", lambda: self.store.sizes(""))
        found: dict[int, list[str]] = {}
        for name in sizes:
            match = NAME.match(name.partition("/")[0])
            if match and "/" in name:
                found.setdefault(int(match.group(1)), []).append(name)
        return found

    def manifest_text(self, step: int, patience: Patience) -> str | None:
        """What a checkpoint says of itself, read a second time before it is doubted; None where it is not there."""

        def is_sound(text: str | None) -> bool:
            return text is not None and self._fault(text, step) is None

        return self.store.text_twice(_manifest_of(step), is_sound, patience)

    def _fault(self, text: str, step: int) -> str | None:
        """What is wrong with a manifest; None for nothing, and where it is of another version."""
        try:
            read_manifest(text, step, self.name(step))
        except OtherVersionError:
            return None
        except CheckpointError as error:
            return str(error)
        return None

    def put_files(self, step: int, folder: Path, files: Mapping[str, FileRecord], patience: Patience) -> None:
        """Copy files of a checkpoint there, each read back."""
        for name, record in files.items():
            work = functools.partial(
                self.store.put,
                folder / name,
                f"{step_folder(step)}/{name}",
                num_bytes=record.num_bytes,
                sha256=record.sha256,
            )
            patience.persist(name, work)

    def put_manifest(self, step: int, folder: Path, patience: Patience) -> None:
        """Make the checkpoint one, now that all of its files are there."""
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        patience.persist(MANIFEST_FILE, lambda: self.store.put_text(_manifest_of(step), text))
        self.doubted.discard(step)

    def prune(
        self, keep: Callable[[list[int]], set[int]], patience: Patience, *, newest: int | None = None
    ) -> list[str]:
        """Remove those that ``keep`` does not name of the steps that are there, and what is only half there.

        Those behind ``newest``, which this run has not come to again, and those that could not be read whole here
        neither count nor are removed; nor is one whose manifest cannot be read: another host may read it well.

        Args:
            keep: Of steps those to keep.
            patience: For the store.
            newest: The step that was put there last; None where no other will be.

        Returns:
            What was left for its manifest alone, in words.
        """
        folders = self._folders(patience)
        steps = [step for step in sorted(folders) if step not in self.doubted and (newest is None or step <= newest)]
        kept = keep([step for step in steps if _manifest_of(step) in folders[step]])
        left = []
        for step in steps:
            first = _manifest_of(step)  # without it, what is left is no checkpoint
            if step in kept and first in folders[step]:
                continue
            doubt = self._doubt(step, first in folders[step], patience)
            if doubt is not None:
                left.append(doubt)
                continue
            names = [first, *(name for name in folders[step] if name != first)]
            patience.persist(f"{self.name(step)}: removing", functools.partial(self.store.remove, names))
        return left

    def _doubt(self, step: int, is_listed: bool, patience: Patience) -> str | None:
        """Why one should not be removed; None where its manifest can be read, or is missing whoever is asked."""
        text = self.manifest_text(step, patience)
        if text is None:
            return f"{self.name(step)}: its manifest is listed, and cannot be found" if is_listed else None
        try:
            read_manifest(text, step, self.name(step))
        except CheckpointError as error:
            return str(error)
        return None if is_listed else f"{self.name(step)}: its manifest can be read, and is not listed"

    def fetch_files(self, step: int, folder: Path, files: Mapping[str, FileRecord], patience: Patience) -> list[str]:
        """Copy files of a checkpoint into a folder here; what is wrong with them, each looked at twice.

        Raises:
            StoreError: The store does not answer.
            CheckpointError: The disk here refuses.
        """
        faults = []
        for name, record in files.items():
            work = functools.partial(
                self.store.fetch,
                f"{step_folder(step)}/{name}",
                folder / name,
                num_bytes=record.num_bytes,
                sha256=record.sha256,
            )
            fault = patience.persist(name, work) and patience.persist(name, work)  # it may be the way here
            if fault:
                faults.append(f"{self.name(step)}/{name}: {fault}")
        return faults


@dataclass(frozen=True)
class StorePlace:
    """Where a phase's checkpoints are kept, too."""

    stored: StoredCheckpoints
    timeout_s: float
    """How long an upload is tried, or fetching."""
    along: Callable[[Patience], None]
    """Puts there what belongs to each, before its manifest; rank 0 calls it, in a thread."""


def kept_by(retention: Retention, best: int | None) -> Callable[[list[int]], set[int]]:
    """What a phase that goes on keeps."""
    return lambda steps: retention.kept(steps, best) if steps else set()


def archived_by(retention: Retention, best: int | None) -> Callable[[list[int]], set[int]]:
    """What a phase that is complete keeps."""
    return lambda steps: retention.archived(steps, best)


def _manifest_of(step: int) -> str:
    return f"{step_folder(step)}/{MANIFEST_FILE}"
