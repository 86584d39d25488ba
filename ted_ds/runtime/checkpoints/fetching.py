"""Checkpoints fetched from a store as a run starts: each rank its share of the bytes, and whole or not at all."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from ted_ds.errors import CheckpointError, StoreError
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
    """Fetches checkpoints of one phase into their folders. Every rank must call everything."""

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

    def newest(self, after: int, refuse: Callable[[Mapping[str, Any], str], None]) -> int | None:
        """Fetch the newest whole checkpoint behind a step; returns its step, None where there is none.

        Args:
            after: What is here; -1 for nothing.
            refuse: Raises CheckpointError where a manifest, at a place, is of another run or of other settings.

        Raises:
            CheckpointError: The newest is not of this run, or the disk refuses; on every rank.
            StoreError: The store does not answer; on every rank.
        """
        steps = self._of_main(self._stored.steps)
        for step in reversed([one for one in steps if one > after]):
            if self.one(step, refuse):
                return step
        return None

    def one(self, step: int, refuse: Callable[[Mapping[str, Any], str], None]) -> bool:
        """Fetch the checkpoint after a step; False where it is not there or damaged, which is then said.

        Raises:
            CheckpointError: See :meth:`newest`.
            StoreError: Likewise.
        """
        text = self._of_main(functools.partial(self._stored.manifest_text, step))
        name = self._stored.name(step)
        if text is None:
            return False
        try:
            manifest = read_manifest(text, step, name)
        except CheckpointError as error:
            self._leave(step, [str(error)])
            return False
        self._world.on_main(lambda: refuse(manifest, name))
        started = time.monotonic()
        folder = self._world.on_main(functools.partial(self._folders.begin, step))
        listed: Mapping[str, FileRecord] = manifest["files"]
        by_size = sorted(listed, key=lambda one: (-listed[one].num_bytes, one))
        share = {one: listed[one] for one in by_size[self._world.rank :: self._world.size]}

        def fetch(patience: Patience) -> list[str]:
            return self._stored.fetch_files(step, folder, share, patience)

        parts = all_beside(self._world, fetch, self._timeout_s, place=self._stored.store.name)
        faults = [fault for part in parts for fault in part]
        if faults:
            self._world.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
            self._leave(step, faults)
            return False
        self._world.on_main(functools.partial(self._adopt, step, text))
        gib = sum(one.num_bytes for one in listed.values()) / 2**30
        self._say(f"  fetched {name}, {gib:.2f} GiB in {time.monotonic() - started:.1f} s, each file by its SHA-256")
        return True

    def _adopt(self, step: int, text: str) -> None:
        try:
            self._folders.adopt(step, text)
        except OSError as error:
            raise CheckpointError(cannot_write(self._folders.path(step), error)) from error

    def _leave(self, step: int, faults: list[str]) -> None:
        self._say(f"  WARN damaged checkpoint at the store, which is none any more: {'; '.join(faults[:3])}")
        self._of_main(functools.partial(self._stored.disown, step))

    def _of_main(self, work: Callable[[Patience], Any]) -> Any:
        def of_main(patience: Patience) -> Any:
            return work(patience) if self._world.is_main else None

        return all_beside(self._world, of_main, self._timeout_s, place=self._stored.store.name)[0]
