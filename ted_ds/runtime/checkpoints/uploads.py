"""Checkpoints on their way to a store, while training goes on; every rank calls everything but where it says so.

Each rank puts the files that it wrote itself. Once all have, rank 0 looks whether all are there, puts the manifest and
removes what is not kept any more. Threads do not talk to each other: that is done between steps, with the numbers that
ranks exchange there anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ted_ds.errors import StoreError
from ted_ds.output.store import Beside, Patience
from ted_ds.runtime.checkpoints.folders import CheckpointFolders, FileRecord, Retention
from ted_ds.runtime.checkpoints.stored import StorePlace, kept_by, step_folder
from ted_ds.runtime.world import World

LOOK_EVERY_S = 0.1
MOST_SAID = 2
"""Of ranks that have the same trouble."""


@dataclass(frozen=True)
class _Upload:
    step: int
    files: Mapping[str, FileRecord]
    """That this rank wrote."""
    best: int | None
    """The step with the best score by then."""


class Uploads:
    """The uploads of one phase's checkpoints, one after the other."""

    def __init__(
        self,
        place: StorePlace,
        folders: CheckpointFolders,
        world: World,
        *,
        retention: Retention,
        say: Callable[[str], None],
    ) -> None:
        """Begin with none.

        Args:
            place: Where to.
            folders: Where from.
            world: The ranks.
            retention: Which the store keeps.
            say: Takes messages to the user.
        """
        self.stored, self._timeout_s, self._along = place.stored, place.timeout_s, place.along
        self._folders, self._world = folders, world
        self._retention, self._say = retention, say
        self._current: _Upload | None = None
        self._waiting: list[_Upload] = []
        self._beside: Beside | None = None
        self._puts_manifest = False
        self._is_told = False
        self._left: list[str] = []
        self.failure: str | None = None
        """Why the newest that was tried is not at the store; None where it is."""

    # --- what each rank knows by itself -----------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether this rank's part of the upload goes on."""
        return self._beside is not None and self._beside.is_busy

    @property
    def is_troubled(self) -> bool:
        """Whether this rank has failed several times, and nobody was told yet."""
        return self._beside is not None and self._beside.patience.trouble is not None and not self._is_told

    def held(self) -> set[int]:
        """Steps whose files here are still read; the same on every rank."""
        return {one.step for one in (self._current, *self._waiting) if one is not None}

    # --- what all do together ---------------------------------------------------------------------------------------

    def offer(self, step: int, files: Mapping[str, FileRecord], best: int | None) -> None:
        """Upload a checkpoint that is in its place here, once those before are through.

        Of those that wait, only the newest stays, and what is kept for good.

        Args:
            step: Which.
            files: What this rank wrote of it, by path.
            best: The step with the best score.
        """
        archived = self._retention.archived([one.step for one in self._waiting], best)
        self._waiting = [one for one in self._waiting if one.step in archived]
        self._waiting.append(_Upload(step, files, best))
        if self._current is None:
            self._begin()

    def look(self, *, is_busy: bool, is_troubled: bool) -> bool:
        """Take the next part of an upload, where no rank is busy with the last; no rank waits for the store.

        Args:
            is_busy: Whether any rank is (:attr:`is_busy`).
            is_troubled: Likewise (:attr:`is_troubled`).

        Returns:
            Whether one is over, well or not.
        """
        if is_troubled:
            self._tell_of_trouble()
        if self._current is None or is_busy:
            return False
        failed = _of_ranks(self._world.gather(None if self._beside is None else self._beside.failure))
        if failed is None and not self._puts_manifest:
            self._puts_manifest = True
            self._beside = Beside(self._complete, self._timeout_s) if self._world.is_main else None
            return False
        self._end(failed)
        return True

    def finish(self) -> bool:
        """Wait for what is on its way and what waits, as long as one upload may take; whether there was anything."""
        until = time.monotonic() + self._timeout_s
        was_open = self._current is not None
        while self._current is not None:
            late = time.monotonic() > until
            busy, troubled, late = self._world.highest(self.is_busy, self.is_troubled, late)
            if late and busy:
                self._waiting = []
                so_far = self._world.gather(self._beside.so_far if self._beside and self._beside.is_busy else None)
                if self._beside is not None:
                    self._beside.patience.give_up()
                self._end(_of_ranks(so_far) or f"not through within {self._timeout_s:g} s")
                break
            self.look(is_busy=bool(busy), is_troubled=bool(troubled))
            if busy:
                time.sleep(LOOK_EVERY_S)
        return was_open

    def _begin(self) -> None:
        self._current, *self._waiting = self._waiting
        self._puts_manifest, self._is_told = False, False
        earlier, upload = self._beside, self._current
        if earlier is not None and earlier.hangs:  # a second one would hang, too
            return
        folder = self._folders.path(upload.step)

        def put(patience: Patience) -> None:
            self.stored.put_files(upload.step, folder, upload.files, patience)

        self._beside = Beside(put, self._timeout_s)

    def _complete(self, patience: Patience) -> list[str]:
        """Of rank 0, in its thread; returns what retention should have removed there, and could not read."""
        upload = self._current
        assert upload is not None
        listed: Mapping[str, FileRecord] = self._folders.manifest(upload.step)["files"]
        store, within = self.stored.store, step_folder(upload.step)
        sizes = patience.persist(f"{self.stored.name(upload.step)}: listing", lambda: store.sizes(within))
        wrong = [name for name, record in listed.items() if sizes.get(f"{within}/{name}") != record.num_bytes]
        if wrong:
            raise StoreError(f"{', '.join(wrong[:3])}: is not there whole, though a rank has put it there")
        self._along(patience)
        self.stored.put_manifest(upload.step, self._folders.path(upload.step), patience)
        return self.stored.prune(kept_by(self._retention, upload.best), patience, newest=upload.step)

    def _end(self, failure: str | None) -> None:
        assert self._current is not None
        step, self._current = self._current.step, None
        if failure is not None:
            self._say(
                f"  WARN the checkpoint after step {step} is not at {self.stored.store.name}: {failure}. It is whole "
                f"here, in {self._folders.path(step)}, and training goes on; the next one is tried again. Look at the "
                "store, at the network and at what this machine may do there"
            )
        elif self.failure is not None:
            self._say(f"  the checkpoint after step {step} is at {self.stored.store.name}: uploads work again")
        if failure is None and self._beside is not None:
            self._tell_of_left(self._beside.result)
        self.failure = failure
        if self._waiting:
            self._begin()

    def _tell_of_left(self, left: Sequence[str]) -> None:
        new = [one for one in left if one not in self._left]
        self._left = [*left]
        if new:
            self._say(
                f"  WARN not removed at the store, as it cannot be read: {'; '.join(new)}. Remove it there by hand"
            )

    def _tell_of_trouble(self) -> None:
        troubles = self._world.gather(None if self._beside is None else self._beside.patience.trouble)
        self._is_told = True
        told = next((f"rank {rank}: {trouble}" for rank, trouble in enumerate(troubles) if trouble), None)
        if told is not None and self._current is not None:
            self._say(
                f"  WARN the upload of the checkpoint after step {self._current.step} to {self.stored.store.name} "
                f"fails again and again: {told}. It is tried for {self._timeout_s:g} s; training goes on, and the "
                "checkpoint is whole here"
            )


def _of_ranks(texts: Sequence[str | None]) -> str | None:
    """What ranks say, in one line; None where none says anything."""
    said = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    return "; ".join(said[:MOST_SAID]) or None
