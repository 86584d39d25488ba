"""Where the checkpoints of a phase are, here and at a store, and which of them stay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from ted_ds.assembly.assembly import Assembly
from ted_ds.config.schema import Recipe
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.store import Store
from ted_ds.output.stored_numbers import put_numbers
from ted_ds.runtime.checkpoints.folders import Retention
from ted_ds.runtime.checkpoints.origin import Origin
from ted_ds.runtime.checkpoints.saving import Checkpoints
from ted_ds.runtime.checkpoints.stored import StoredCheckpoints, StorePlace

CHECKPOINTS_FOLDER = "checkpoints"


def store_of(recipe: Recipe) -> Store | None:
    """Where a run keeps copies of what it leaves; None where it does not."""
    upload = recipe.checkpoint.upload
    return None if upload is None else Store(upload.to)


def retention_of(recipe: Recipe) -> Retention:
    """Which checkpoints stay, here as at a store."""
    settings = recipe.checkpoint
    return Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best)


def stored_checkpoints(recipe: Recipe, phase: str) -> StoredCheckpoints | None:
    """Those of a phase at the run's store."""
    store = store_of(recipe)
    return None if store is None else StoredCheckpoints(store.within(f"{CHECKPOINTS_FOLDER}/{phase}"))


def checkpoints_of(
    build: Assembly, folder: PhaseFolder, tell: Callable[[int, Path], None] | None = None
) -> Checkpoints:
    """The checkpoints of a phase, beside its result; ``tell`` hears of new ones."""
    root = folder.path.parent / CHECKPOINTS_FOLDER / folder.path.name
    return Checkpoints(
        root,
        build.world,
        origin=Origin(build.run.run_id, folder.inputs, root),
        retention=retention_of(build.recipe),
        say=build.screen.say,
        tell=tell,
        store=_place_of(build.recipe, folder.path.name),
    )


def _place_of(recipe: Recipe, phase: str) -> StorePlace | None:
    upload, store, stored = recipe.checkpoint.upload, store_of(recipe), stored_checkpoints(recipe, phase)
    if upload is None or store is None or stored is None:
        return None
    return StorePlace(stored, upload.timeout_s, functools.partial(put_numbers, store, recipe.output_dir))
