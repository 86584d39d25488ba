"""Results of phases at a store: put there by rank 0 beside what comes next, and fetched where they are missing here.

At the store they have the names they have in the output folder, and a phase is complete once its manifest is there.
"""

from __future__ import annotations

import functools
import json
import queue
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.errors import CheckpointError, StoreError
from ted_ds.output.phase_folder import MANIFEST, PhaseFolder, sync
from ted_ds.output.store import Beside, Patience, Store
from ted_ds.output.stored_numbers import put_numbers
from ted_ds.phases.checkpoints import retention_of, store_of, stored_checkpoints
from ted_ds.runtime.checkpoints.fetching import all_beside
from ted_ds.runtime.checkpoints.stored import archived_by

IDLE_S = 0.05
SHA256_LENGTH = 64


class StoredPhases:
    """Those of a run; every rank must call everything. Where the recipe names no store, nothing happens."""

    def __init__(self, build: Assembly) -> None:
        self._build = build
        self._store = store_of(build.recipe)
        upload = build.recipe.checkpoint.upload
        self._timeout_s = 0.0 if upload is None else upload.timeout_s
        self._wanted: queue.SimpleQueue[PhaseFolder] = queue.SimpleQueue()
        self._offered: set[Path] = set()
        self._beside: Beside | None = None
        self._missing: list[str] = []
        """What could not be put there."""

    # --- to the store -----------------------------------------------------------------------------------------------

    def offer(self, folder: PhaseFolder) -> None:
        """Put a complete phase there, unless it is; nobody waits."""
        if self._store is None or not self._build.world.is_main or folder.path in self._offered:
            return
        self._note_end()
        self._offered.add(folder.path)
        self._wanted.put(folder)
        if self._beside is None:
            self._begin()

    def _begin(self) -> None:
        if not self._wanted.empty():
            store, folder = self._store, self._wanted.get()
            assert store is not None
            work = functools.partial(self._put, store, folder)
            self._beside = Beside(work, self._timeout_s)
            self._at = folder.path.name

    def _note_end(self) -> None:
        """Of rank 0: take the next one, where the last is through."""
        if self._beside is None or self._beside.is_busy:
            return
        if self._beside.failure is None:
            for left in self._beside.result:
                self._build.screen.say(f"  WARN not removed at the store, as it cannot be read: {left}")
        else:
            self._missing.append(f"{self._at}: {self._beside.failure}")
            assert self._store is not None
            self._build.screen.say(
                f"  WARN the result of {self._at} is not at {self._store.name}: {self._beside.failure}. It is whole "
                "here, and the run goes on"
            )
        self._beside = None
        self._begin()

    def _put(self, store: Store, folder: PhaseFolder, patience: Patience) -> list[str]:
        """Returns what of its checkpoints should have been removed there, and could not be read."""
        name, text = folder.path.name, (folder.path / MANIFEST).read_text(encoding="utf-8")
        manifest = f"{name}/{MANIFEST}"
        there = store.text_twice(manifest, lambda found: found in (None, text), patience)
        if there != text:  # what was read may be wrong: nothing is removed, and the manifest is put there last
            for file, (num_bytes, sha256) in json.loads(text)["files"].items():
                place = f"{name}/{file}"
                put = functools.partial(store.put, folder.path / file, place, num_bytes=num_bytes, sha256=sha256)
                patience.persist(place, put)
            patience.persist(manifest, lambda: store.put_text(manifest, text))
        put_numbers(store, self._build.recipe.output_dir, patience)
        checkpoints = stored_checkpoints(self._build.recipe, name)
        if checkpoints is not None:
            best = json.loads(text)["result"].get("best")
            keep = archived_by(retention_of(self._build.recipe), best["step"] if best else None)
            return checkpoints.prune(keep, patience)
        return []

    def finish(self) -> None:
        """Wait for what is on its way, as long as one upload may take.

        Raises:
            StoreError: Something is not there; on every rank.
        """
        if self._store is None:
            return
        world, until = self._build.world, time.monotonic() + self._timeout_s
        while True:
            if world.is_main:
                self._note_end()
            is_busy = self._beside is not None and time.monotonic() < until
            if not world.highest(is_busy)[0]:
                break
            time.sleep(IDLE_S)
        with world.together():
            if self._beside is not None:
                self._missing.append(f"{self._at}: {self._beside.so_far}")
            if self._missing:
                raise StoreError(
                    f"checkpoint.upload.to: {self._store.name}: the run is complete here, in "
                    f"{self._build.recipe.output_dir}, but not there: {'; '.join(self._missing)}. Start the same "
                    "command again once the store answers: what is complete is skipped, and put there"
                )

    # --- from the store ---------------------------------------------------------------------------------------------

    def fetch(self, folder: PhaseFolder) -> None:
        """Fetch the result of a phase that is not here, if it is there.

        Raises:
            StoreError: The store does not answer; on every rank.
            CheckpointError: The disk refuses, or what is there cannot be read whole, which another host may do: it is
                left as it is; on every rank.
        """
        store, world = self._store, self._build.world
        if store is None or not world.on_main(lambda: not folder.path.exists()):
            return

        def fetch(patience: Patience) -> list[str] | None:
            return self._fetch(store, folder, patience) if world.is_main else None

        started = time.monotonic()
        faults = all_beside(world, fetch, self._timeout_s, place=store.name)[0]
        if faults is None:
            return
        name = f"{store.name}/{folder.path.name}"
        if faults:
            error = CheckpointError(
                f"{name}: cannot be read whole: {'; '.join(faults[:3])}. Nothing was removed or changed. Look at "
                "network and store, or start the same command on another host, which may read it well; remove "
                f"{name} there to have the phase done again"
            )
            error.agreed = True
            raise error
        self._build.screen.say(f"fetched {name} in {time.monotonic() - started:.1f} s, each file by its SHA-256")

    @staticmethod
    def _fetch(store: Store, folder: PhaseFolder, patience: Patience) -> list[str] | None:
        """What is wrong with it; None where it is not there. The manifest's files are then in place."""
        name = folder.path.name
        text = store.text_twice(
            f"{name}/{MANIFEST}", lambda found: found is None or _listed(found) is not None, patience
        )
        if text is None:
            return None
        listed = _listed(text)
        if listed is None:
            return [f"{name}/{MANIFEST}: is damaged"]
        unfinished = folder.path.with_name(f".{name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            faults = []
            for file, (num_bytes, sha256) in listed.items():
                place = f"{name}/{file}"
                get = functools.partial(store.fetch, place, unfinished / file, num_bytes=num_bytes, sha256=sha256)
                fault = patience.persist(place, get) and patience.persist(place, get)
                faults += [f"{place}: {fault}"] if fault else []
            if faults:
                return faults
            (unfinished / MANIFEST).write_text(text, encoding="utf-8")
            for one in (*unfinished.rglob("*"), unfinished):
                sync(one)
            unfinished.replace(folder.path)
            sync(folder.path.parent)
            return []
        except OSError as error:
            raise CheckpointError(f"{folder.path}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _listed(manifest: str) -> Mapping[str, Any] | None:
    """The files that a phase's manifest lists; None where it is damaged."""
    try:
        listed = json.loads(manifest)["files"]
        return (
            listed
            if all(isinstance(size, int) and len(sha256) == SHA256_LENGTH for size, sha256 in listed.values())
            else None
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
