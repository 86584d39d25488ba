"""What each phase of :mod:`ted_ds.planning.phase` has besides: what its result depends on, and what it does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import RunFolders
from ted_ds.phases.callbacks import Listeners
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.journal import Journal
from ted_ds.planning.phase import Phase
from ted_ds.vetting.teacher import TeacherVetting


@dataclass(frozen=True)
class Kit:
    """What the phases of a run work with."""

    build: Assembly
    folders: RunFolders
    journal: Journal
    teacher: TeacherVetting
    listeners: Listeners

    def write(self, folder: PhaseFolder, work: Callable[[Path], dict[str, Any]]) -> None:
        """Put a phase's result in place; see :meth:`PhaseFolder.write`. Every rank must call it.

        Raises:
            TedError: It cannot be written; on every rank.
        """
        self.build.world.on_main(functools.partial(folder.write, work))


def _nothing(_: Assembly) -> None:
    """Where a phase needs no such thing."""


@dataclass(frozen=True)
class Work:
    """One phase's."""

    inputs: Callable[[Inputs, Phase], dict[str, Any]]
    """Everything that decides its result."""
    run: Callable[[Kit, Phase, PhaseFolder], None]
    """Do it and write its result; every rank calls it."""
    announce: Callable[[Assembly], None] = _nothing
    """Say what it will take, or refuse that, before anything is written; every rank calls it."""
    retire: Callable[[Assembly], None] = _nothing
    """Remove what was only kept to go on with it, once it is complete; one rank calls it."""
