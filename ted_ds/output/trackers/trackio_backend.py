"""Trackio: a SQLite database in the output folder, or wherever its own variables say."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.output.trackers.backend import Backend, TrackedRun

FOLDER, FOLDER_VARIABLE = "trackio", "TRACKIO_DIR"


class TrackioBackend(Backend):
    """One Trackio run for a run, by its name and id; metrics bear their phase's name, and its step.

    A run that is started again goes on in it: what comes again is there twice. Trackio itself says, once, what it
    cannot write or send.
    """

    title = "Trackio"

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun) -> None:
        """Start a Trackio run, or go on with the one of an earlier start."""
        os.environ.setdefault(FOLDER_VARIABLE, str(run.folder.absolute() / FOLDER))  # read as it is imported
        trackio: Any = importlib.import_module("trackio")  # an optional package, and slow to import
        self._folder: Path = trackio.utils.TRACKIO_DIR
        with _quiet():
            self._run = trackio.init(
                project=run.project,
                name=f"{run.name}-{run.run_id}",  # a name is all that it finds a run by
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        trackio.context_vars.current_run.set(None)  # it would be finished once more, aloud, as Python ends

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Hand over a phase's values."""
        self._run.log({f"{phase}/{name}": value for name, value in values.items()}, step=step)

    def summarise(self, values: Mapping[str, float]) -> None:
        """Log them at step 0, under names of their own."""
        self._run.log({f"summary/{name}": value for name, value in values.items()}, step=0)

    def close(self) -> None:
        """Finish the Trackio run; it writes, or sends, what is left."""
        with _quiet():
            self._run.finish()

    def place(self) -> str:
        """The folder of its databases."""
        return str(self._folder)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Without the lines of advice that it prints."""
    return contextlib.redirect_stdout(io.StringIO())
