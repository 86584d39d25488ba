"""Where the checkpoints of a phase are, and which of them stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ted_ds.assembly.assembly import Assembly
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.runtime.checkpoints.folders import Retention
from ted_ds.runtime.checkpoints.saving import Checkpoints

CHECKPOINTS_FOLDER = "checkpoints"


def checkpoints_of(
    build: Assembly, folder: PhaseFolder, tell: Callable[[int, Path], None] | None = None
) -> Checkpoints:
    """The checkpoints of a phase, beside its result; ``tell`` hears of new ones."""
    settings = build.recipe.checkpoint
    return Checkpoints(
        folder.path.parent / CHECKPOINTS_FOLDER / folder.path.name,
        build.world,
        run_id=build.run.run_id,
        inputs=folder.inputs,
        retention=Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best),
        say=build.screen.say,
        tell=tell,
    )
