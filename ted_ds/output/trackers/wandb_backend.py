"""Weights & Biases: online where that can be, else written to be sent later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ted_ds.config.wandb import SENDING, wandb_mode
from ted_ds.output.trackers.backend import Backend, TrackedRun, complain, in_one_line
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE

START_TIMEOUT_S = 20.0


class WandbBackend(Backend):
    """One W&B run for a run, by its id; each phase counts its own steps.

    Online, a run that is started again goes on in it; offline each start has a folder of its own, with the same id.
    """

    title = "W&B"

    def __init__(self, wanted: str) -> None:
        """``wanted`` is the recipe's word (:mod:`ted_ds.config.wandb`)."""
        self._wanted = wanted
        self.mode = "disabled"
        """That it came to."""
        self._phases: set[str] = set()
        self._wandb: Any = None

    def open(self, run: TrackedRun) -> None:
        """Start a W&B run, offline where it cannot be online.

        Raises:
            ConfigError: The environment has a mode that is none.
        """
        self._folder = run.folder / "wandb"
        wanted = wandb_mode(self._wanted, os.environ)
        # what cannot be sent now can be later, with wandb sync
        tried = {"disabled": (), "offline": ("offline",)}.get(wanted, (wanted, "offline"))
        for mode in tried:
            try:
                self._wandb = self._start(mode, run)
            except Exception as error:  # whatever it is: numbers are in the file
                complain(
                    f"W&B does not start {mode} ({in_one_line(error)}); the run goes on, numbers are in "
                    f"{run.folder / METRICS_FILE}"
                )
            else:
                self.mode = mode
                break

    def _start(self, mode: str, run: TrackedRun) -> Any:
        import wandb  # on this rank alone: it takes most of a second, and reads hundreds of files

        try:
            return wandb.init(
                project=run.project,
                name=run.name,
                dir=str(run.folder),
                config=dict(run.config),
                mode=mode,  # type: ignore[arg-type]
                id=run.run_id,
                resume="allow" if mode in SENDING else None,  # elsewhere there is nothing to look it up in
                settings=wandb.Settings(silent=True, console="off", init_timeout=START_TIMEOUT_S),
            )
        except Exception:
            wandb.teardown()  # its service would hold on to the run's id
            raise

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Send a phase's values, with its step beside them."""
        if self._wandb is None:
            return
        if phase not in self._phases:  # each phase counts its own steps
            self._phases.add(phase)
            self._wandb.define_metric(f"{phase}/step")
            self._wandb.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._wandb.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in values.items()}})

    def summarise(self, values: Mapping[str, float]) -> None:
        """Put them in the run's summary."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(values))

    def close(self) -> None:
        """Finish the W&B run; it may want to upload something first."""
        if self._wandb is not None:
            self._wandb.finish()

    def place(self) -> str:
        """Its mode and folder."""
        return f"{self.mode}, {self._folder}"
