"""A checkpoint that is on the disk, and how a new engine takes it up."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.runtime.checkpoints.folders import cannot_write
from ted_ds.runtime.checkpoints.writer import BackgroundWrite
from ted_ds.runtime.step_runner import StepRunner
from ted_ds.runtime.world import World

MOST_FAULTS = 8
"""That one message lists."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint to go on from."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    """What is said once for all ranks."""
    of_ranks: Sequence[Mapping[str, Any]]
    """What each rank that saved it said."""


def nothing_whole(places: Sequence[str], faults: Sequence[str]) -> CheckpointError:
    """The error of all ranks where there are checkpoints, and not one can be read whole.

    Args:
        places: Folders, here and at a store.
        faults: What is wrong with each.
    """
    error = CheckpointError(
        f"{' and '.join(places)}: checkpoints are there, and no checkpoint can be read whole: "
        f"{'; '.join(faults[:MOST_FAULTS])}. Nothing was removed or changed. Look at disk, network and store, or start "
        "the same command on another host, which may read them well; to start the phase anew, move these folders away"
    )
    error.agreed = True
    return error


def take_up(engine: StepRunner, saved: Saved, world: World, *, place: Path, say: Callable[[str], None]) -> None:
    """Give a new engine the state of a checkpoint, rewritten where it was saved on another layout.

    Args:
        engine: The engine.
        saved: The checkpoint.
        world: The ranks; every rank must call it.
        place: A folder to rewrite it in, which is removed again.
        say: Takes messages to the user.

    Raises:
        CheckpointError: It cannot be rewritten; on every rank.
    """
    then, now = saved.state["layout"], engine.layout
    if then == {key: now[key] for key in now if key != "names" or key in then}:  # their order says as much
        engine.load(saved.folder)
        return
    before, after = ({**one, "stages": len(one.get("stages", [0])), "order": ""} for one in (then, now))
    changed = [f"{key} {before[key]} -> {after[key]}" for key in after if key != "names" and before[key] != after[key]]
    # the order of parameters, a hash, follows from the others, from where stages were cut, or from settings of ZeRO
    say(f"  another layout than the checkpoint's: {', '.join(changed) or 'its flat tensors are in another order'}")
    if then["inner_optimizer"] != now["inner_optimizer"]:
        raise CheckpointError(
            f"{saved.folder}: was taken with {then['inner_optimizer']}, this run steps with "
            f"{now['inner_optimizer']}; use the same optimizer"
        )
    world.on_main(functools.partial(_empty, place))
    write = BackgroundWrite(engine.states_from(saved.folder, then, place), {})
    write.wait(0.8 * world.timeout_s)
    with world.together():
        if write.failure is not None or not write.is_done:
            reason = write.failure or TimeoutError("the disk hangs")
            raise CheckpointError(cannot_write(place, reason))
    engine.load(place)
    world.gather(None)  # until all have read it
    world.on_main(functools.partial(shutil.rmtree, place))


def _empty(place: Path) -> None:
    try:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(cannot_write(place, error)) from error
