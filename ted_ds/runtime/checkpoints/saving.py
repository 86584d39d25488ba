"""When a checkpoint begins, when all ranks have written it, and which one to go on from. Every rank calls everything.

A save has three parts: the ranks copy their states (training waits), each writes its files in a thread (training goes
on), and at the first step boundary where all are done rank 0 puts the checkpoint in its place.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError, OtherVersionError, counted
from ted_ds.runtime.checkpoints.fetching import Fetching
from ted_ds.runtime.checkpoints.folders import CheckpointFolders, FileRecord, Retention, cannot_write
from ted_ds.runtime.checkpoints.origin import Origin
from ted_ds.runtime.checkpoints.stored import StorePlace
from ted_ds.runtime.checkpoints.taking_up import Saved, nothing_whole, take_up
from ted_ds.runtime.checkpoints.uploads import Uploads
from ted_ds.runtime.checkpoints.writer import BackgroundWrite, relative
from ted_ds.runtime.step_runner import StepRunner
from ted_ds.runtime.world import World

STATE_FILE = "state.json"
RANKS_FOLDER = "ranks"
RESHARDED_FOLDER = ".resharded"


class Checkpoints:
    """The checkpoints of one phase of one run."""

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        origin: Origin,
        retention: Retention,
        say: Callable[[str], None],
        tell: Callable[[int, Path], None] | None = None,
        store: StorePlace | None = None,
    ) -> None:
        """Keep them in ``root``.

        Args:
            root: Of this phase alone.
            world: The ranks.
            origin: Whose they are, and of which inputs.
            retention: Which to keep.
            say: Takes messages to the user.
            tell: Hears of each that is in its place, on every rank: after which step, and where.
            store: Where they are kept, too.
        """
        self.folders = CheckpointFolders(root)
        self._world, self._origin, self._retention, self._say = world, origin, retention, say
        self._tell = tell
        self._uploads: Uploads | None = None
        self._fetching: Fetching | None = None
        if store is not None:
            self._uploads = Uploads(store, self.folders, world, retention=retention, say=say)
            self._fetching = Fetching(store.stored, self.folders, world, timeout_s=store.timeout_s, say=say)
        self._write: BackgroundWrite | None = None
        self._step = 0
        self._best: int | None = None
        self.stalled_s = 0.0
        """How long training has waited for checkpoints in all."""

    # --- saving -----------------------------------------------------------------------------------------------------

    def begin(
        self,
        engine: StepRunner,
        step: int,
        *,
        state: Mapping[str, Any],
        of_rank: Mapping[str, Any],
        texts: Mapping[str, str],
        best: int | None,
    ) -> None:
        """Copy what is to be saved, and begin to write; an earlier checkpoint is finished first.

        Args:
            engine: What trains.
            step: The step that was taken last.
            state: What is said once for all ranks, as JSON; rank 0's counts.
            of_rank: What this rank says, as JSON.
            texts: More files, by name; rank 0's count.
            best: The step with the best score, which retention may keep.

        Raises:
            CheckpointError: It cannot be written, or the earlier one could not; on every rank.
        """
        self.finish()
        started = time.monotonic()
        folder = self._world.on_main(functools.partial(self._begin, step))
        rank = self._world.rank
        files = {folder / RANKS_FOLDER / f"rank_{rank:05d}.json": json.dumps(of_rank)}
        if self._world.is_main:
            whole = {**state, "num_ranks": self._world.size, "layout": engine.layout}
            files[folder / STATE_FILE] = json.dumps(whole, indent=1) + "\n"
            files |= {folder / name: text for name, text in texts.items()}
        self._write = BackgroundWrite(engine.states(folder), files)
        self._step, self._best = step, best
        self.stalled_s += time.monotonic() - started

    def _begin(self, step: int) -> Path:
        folder = self.folders.begin(step)
        (folder / RANKS_FOLDER).mkdir()
        return folder

    @property
    def is_open(self) -> bool:
        """Whether a checkpoint was begun and is not yet in its place; the same on every rank."""
        return self._write is not None

    @property
    def signs(self) -> tuple[bool, bool, bool]:
        """Whether this rank writes, uploads, and has something to say of that: what :meth:`advance` wants of any."""
        uploads = self._uploads
        return (
            self._write is not None and not self._write.is_done,
            uploads is not None and uploads.is_busy,
            uploads is not None and uploads.is_troubled,
        )

    def advance(self, writing: int, uploading: int, troubled: int) -> None:
        """Take what comes next, where no rank is at what was before; nobody waits for a disk or a store.

        Raises:
            CheckpointError: See :meth:`commit`.
        """
        if self._write is not None and not writing:
            self.commit()
        elif self._uploads is not None and self._uploads.look(is_busy=bool(uploading), is_troubled=bool(troubled)):
            self._world.on_main(self._prune)

    @property
    def not_stored(self) -> str | None:
        """Why the newest checkpoint is not at the store; None where it is, or should not be."""
        return None if self._uploads is None else self._uploads.failure

    def settle_uploads(self) -> None:
        """Wait for uploads, within their bound."""
        if self._uploads is not None:
            started = time.monotonic()
            any_ended = self._uploads.finish()
            self.stalled_s += time.monotonic() - started
            if any_ended:  # else nothing was saved by now, and which is the best is not known here
                self._world.on_main(self._prune)

    def commit(self) -> None:
        """Put the checkpoint in its place, once no rank writes any more.

        Raises:
            CheckpointError: Some rank could not write; on every rank. The earlier checkpoints are untouched.
        """
        assert self._write is not None
        assert self._write.is_done, "what is half written is no checkpoint"
        started = time.monotonic()
        write, self._write = self._write, None
        place = self.folders.path(self._step)
        try:
            with self._world.together():
                if write.failure is not None:
                    raise CheckpointError(cannot_write(place, write.failure)) from write.failure
            folder = self.folders.unfinished(self._step)
            own = dict(relative(write.records(), folder))
            known = {name: record for part in self._world.gather(own) for name, record in part.items()}
            self._world.on_main(functools.partial(self._commit, known))
            if self._uploads is not None:
                self._uploads.offer(self._step, self._with_others(own, known), self._best)
        except CheckpointError:
            self._world.on_main(self._remove_unfinished)  # a full disk needs the room
            raise
        self.stalled_s += time.monotonic() - started
        if self._tell is not None:
            self._tell(self._step, place)

    def _commit(self, known: Mapping[str, FileRecord]) -> None:
        self.folders.commit(self._step, known, self._origin.about)
        self._prune()

    def _with_others(self, own: Mapping[str, FileRecord], known: Mapping[str, FileRecord]) -> Mapping[str, FileRecord]:
        """What this rank uploads: its own files, and on rank 0 those that no rank knows to have written."""
        if not self._world.is_main:
            return own
        listed: Mapping[str, FileRecord] = self.folders.manifest(self._step)["files"]
        return {**own, **{name: record for name, record in listed.items() if name not in known}}

    def _prune(self) -> None:
        steps = self.folders.steps()
        held = set() if self._uploads is None else self._uploads.held() & {*steps}
        try:
            if steps:
                self.folders.prune(self._retention.kept(steps, self._best) | held)
        except OSError as error:  # the new one is safe: no reason to stop
            self._say(f"  WARN {self.folders.root}: old checkpoints cannot be removed: {error}")

    def _remove_unfinished(self) -> None:
        shutil.rmtree(self.folders.unfinished(self._step), ignore_errors=True)

    def finish(self) -> None:
        """Wait for a checkpoint that is being written, and put it in its place.

        Raises:
            CheckpointError: It could not be written, or the disk does not answer in time; on every rank.
        """
        if self._write is None:
            return
        started = time.monotonic()
        # well before the others give up on this rank
        in_time = self._write.wait(0.8 * self._world.timeout_s)
        self.stalled_s += time.monotonic() - started
        with self._world.together():
            if not in_time:
                raise CheckpointError(cannot_write(self.folders.path(self._step), TimeoutError("the disk hangs")))
        self.commit()

    # --- going on ---------------------------------------------------------------------------------------------------

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole, verified to the last byte; damaged ones are named and put aside.

        Raises:
            OtherVersionError: The newest is of another version; on every rank.
            CheckpointError: It was made with other settings, or by another run, or there are some and none is whole;
                on every rank. Nothing is changed then.
        """
        steps = self._world.on_main(self._cleaned)
        found, doubted = -1, {}
        for step in reversed(steps):
            faults = self._faults(step)
            if not faults:
                self._world.on_main(functools.partial(self.refuse_others, step))
                found = step
                break
            doubted[step] = faults
        lost = max(doubted, default=-1)
        if self._fetching is not None:
            fetched = self._fetching.newest(found, self._origin.refuse)
            found = found if fetched is None else fetched
        if found < 0:
            self._refuse_to_begin_anew(doubted)
            return None
        for step, faults in doubted.items():
            done = "replaced by that of the store"
            if step != found:
                done = f"moved to {self._world.on_main(functools.partial(self.folders.put_aside, step))}"
            self._say(f"  WARN damaged checkpoint, skipped and {done}: {'; '.join(faults[:3])}")
        if lost > found:
            self._say(
                f"  WARN going on from step {found}: at least {counted(lost - found, 'step')} lost and done again"
            )
        return self._world.on_main(functools.partial(self._read, found))

    def _refuse_to_begin_anew(self, doubted: Mapping[int, list[str]]) -> None:
        """Make sure that there was no checkpoint at all, where none is whole."""
        there = {} if self._fetching is None else self._fetching.doubted
        if doubted or there:
            places = [str(self.folders.root)] if doubted else []
            if there and self._fetching is not None:
                places.append(self._fetching.place)
            raise nothing_whole(places, [faults[0] for one in (doubted, there) for faults in one.values()])

    def after(self, step: int) -> Saved:
        """The checkpoint after a step, verified to the last byte.

        Raises:
            CheckpointError: It is not there, or damaged; on every rank.
        """
        is_there = self._world.on_main(lambda: step in self.folders.steps())
        faults = self._faults(step) if is_there else [f"{self.folders.path(step)}: is not there"]
        if faults and self._fetching is not None:
            there = self._fetching.one(step, self._origin.refuse)
            faults = [*faults, *there] if there else []
        with self._world.together():
            if faults:
                raise CheckpointError(
                    f"{'; '.join(faults[:3])}. This is the checkpoint with the best score, which export: best takes; "
                    f"remove {self.folders.root} to start the phase anew"
                )
        return self._world.on_main(functools.partial(self._read, step))

    def _faults(self, step: int) -> list[str]:
        """What is wrong with a checkpoint's files; every rank reads a share of the bytes."""
        work = functools.partial(self.folders.faults, step, part=self._world.rank, num_parts=self._world.size)
        parts = self._world.gather(self._world.agree(work))
        return list(dict.fromkeys(fault for part in parts for fault in part))

    def _cleaned(self) -> list[int]:
        self.folders.clean()
        fault = self.folders.latest_fault()
        if fault is not None:
            self._say(f"  WARN {fault}; the newest checkpoint that is whole is taken")
        return self.folders.steps()

    def refuse_others(self, step: int | None = None) -> None:
        """Make sure that the newest checkpoint, or that of ``step``, is of this run and of the same inputs. One rank.

        Raises:
            CheckpointError: It is not.
        """
        if step is None:
            steps = self.folders.steps()
            if not steps:
                return
            step = steps[-1]
        try:
            manifest = self.folders.manifest(step)
        except OtherVersionError:
            raise
        except CheckpointError:  # damaged: :meth:`newest` says so, and takes another
            return
        self._origin.refuse(manifest, str(self.folders.path(step)))

    def _read(self, step: int) -> Saved:
        folder = self.folders.path(step)
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        ranks = [folder / RANKS_FOLDER / f"rank_{rank:05d}.json" for rank in range(state["num_ranks"])]
        of_ranks = [json.loads(file.read_text(encoding="utf-8")) for file in ranks]
        return Saved(folder, step, state, of_ranks)

    def load(self, engine: StepRunner, saved: Saved) -> None:
        """Give a new engine the state of a checkpoint, rewritten where it was saved on another layout.

        Raises:
            CheckpointError: It cannot be rewritten; on every rank.
        """
        take_up(engine, saved, self._world, place=self.folders.root / RESHARDED_FOLDER, say=self._say)

    # --- the end of the phase ---------------------------------------------------------------------------------------

    def retire(self, best: Mapping[str, Any] | None) -> None:
        """Remove what was only kept to go on, once the phase is complete. On one rank only.

        ``best`` is the phase's best score; where that came last, the phase's result has it.
        """
        keep = self._retention.archived(self.folders.steps(), best["step"] if best else None)
        if keep:
            self.folders.clean()
            self.folders.prune(keep)
        else:
            self.folders.remove_all()
