"""Checkpoints fetched from a store as a run starts: each rank its share of the bytes, and whole or not at all."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from ted_ds.errors import CheckpointError, OtherVersionError, StoreError
from ted_ds.output.store import Beside, Patience
from ted_ds.runtime.checkpoints.folders import CheckpointFolders, FileRecord, cannot_write, read_manifest
from ted_ds.runtime.checkpoints.stored import StoredCheckpoints
from ted_ds.runtime.world import World

LOOK_EVERY_S = 0.1


def all_beside(world: World, work: Callable[[Patience], Any], timeout_s: float, *, place: str) -> list[Any]:
    """What ``work`` comes to on each rank, in a thread, so that ranks wait for each other no longer than for a look.

    Args:
        world: The ranks; every rank must call it.
        work: What to do, without talking to other ranks.
        timeout_s: How long it may take.
        place: Where, for messages.

    Raises:
        StoreError: It failed on some rank, or was not done in time; on every rank.
        CheckpointError: The disk here refuses, or what is there is of another run; on every rank.
    """
    beside = Beside(work, timeout_s)
    while world.highest(beside.is_busy)[0]:
        time.sleep(LOOK_EVERY_S)
    with world.together():
        if isinstance(beside.error, CheckpointError):  # of the disk here, or of another run
            raise beside.error
        if beside.failure is not None:
            raise StoreError(
                f"checkpoint.upload.to: {place}: cannot be read: {beside.failure}. The run may have to go on from what "
                "is there, so it does not begin without: start the same command again once the store answers, or "
                "remove checkpoint.upload to use what is on this disk alone"
            ) from beside.error
    return world.gather(beside.result)


class Fetching:
    """Fetches checkpoints of one phase into their folders. Every rank must call everything.

    Nothing at the store is changed: what does not arrive whole here another host may read well.
    """

    def __init__(
        self,
        stored: StoredCheckpoints,
        folders: CheckpointFolders,
        world: World,
        *,
        timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._stored, self._folders, self._world = stored, folders, world
        self._timeout_s, self._say = timeout_s, say
        self.doubted: dict[int, list[str]] = {}
        """What is wrong with those that could not be fetched whole, by step; the same on every rank."""

    @property
    def place(self) -> str:
        """Where they are at the store."""
        return self._stored.store.name

    def newest(self, after: int, refuse: Callable[[Mapping[str, Any], str], None]) -> int | None:
        """Fetch the newest whole checkpoint behind a step; returns its step, None where there is none.

        Args:
            after: What is here; -1 for nothing.
            refuse: Raises CheckpointError where a manifest, at a place, is of another run or of other settings.

        Raises:
            OtherVersionError: The newest is of another version; on every rank.
            CheckpointError: It is not of this run, or the disk refuses; on every rank.
            StoreError: The store does not answer; on every rank.
        """
        steps = self._of_main(self._stored.steps)
        for step in reversed([one for one in steps if one > after]):
            if not self.one(step, refuse):
                return step
        return None

    def one(self, step: int, refuse: Callable[[Mapping[str, Any], str], None]) -> list[str]:
        """Fetch the checkpoint after a step; what is wrong with it, which is then said, where it is not there whole.

        Raises:
            CheckpointError: See :meth:`newest`.
            StoreError: Likewise.
        """
        text = self._of_main(functools.partial(self._stored.manifest_text, step))
        name = self._stored.name(step)
        if text is None:
            return self._leave(step, [f"{name}: is not there"])
        try:
            manifest = read_manifest(text, step, name)
        except OtherVersionError as error:
            error.agreed = True
            raise
        except CheckpointError as error:
            return self._leave(step, [str(error)])
        self._world.on_main(lambda: refuse(manifest, name))
        started = time.monotonic()
        folder = self._world.on_main(functools.partial(self._folders.begin, step))
        listed: Mapping[str, FileRecord] = manifest["files"]
        by_size = sorted(listed, key=lambda one: (-listed[one].num_bytes, one))
        share = {one: listed[one] for one in by_size[self._world.rank :: self._world.size]}

        def fetch(patience: Patience) -> list[str]:
            return self._stored.fetch_files(step, folder, share, patience)

        try:
            parts = all_beside(self._world, fetch, self._timeout_s, place=self._stored.store.name)
        except CheckpointError:  # of the disk here: a full one needs the room
            self._world.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
            raise
        faults = [fault for part in parts for fault in part]
        if faults:
            self._world.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
            return self._leave(step, faults)
        self._world.on_main(functools.partial(self._adopt, step, text))
        gib = sum(one.num_bytes for one in listed.values()) / 2**30
        self._say(f"  fetched {name}, {gib:.2f} GiB in {time.monotonic() - started:.1f} s, each file by its SHA-256")
        return []

    def _adopt(self, step: int, text: str) -> None:
        try:
            self._folders.adopt(step, text)
        except OSError as error:
            raise CheckpointError(cannot_write(self._folders.path(step), error)) from error

    def _leave(self, step: int, faults: list[str]) -> list[str]:
        self._say(
            f"  WARN a checkpoint at the store does not arrive whole, and is left as it is: {'; '.join(faults[:3])}"
        )
        self._stored.doubted.add(step)
        self.doubted[step] = faults
        return faults

    def _of_main(self, work: Callable[[Patience], Any]) -> Any:
        def of_main(patience: Patience) -> Any:
            return work(patience) if self._world.is_main else None

        return all_beside(self._world, of_main, self._timeout_s, place=self._stored.store.name)[0]
