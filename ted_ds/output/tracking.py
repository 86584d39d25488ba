"""Where numbers go: a JSONL file always, Weights & Biases beside it. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ted_ds.config.wandb import SENDING, wandb_mode
from ted_ds.errors import ConfigError

METRICS_FILE = "metrics.jsonl"
START_TIMEOUT_S, FINISH_TIMEOUT_S = 20.0, 20.0
"""How long W&B may take for either."""


class Tracker:
    """Writes each record to ``metrics.jsonl`` and to one W&B run."""

    def __init__(
        self, folder: Path, *, run_id: str, name: str, project: str, mode: str, config: Mapping[str, Any]
    ) -> None:
        """Open both. ``mode`` is the recipe's word (:mod:`ted_ds.config.wandb`); a known ``run_id`` is continued.

        Raises:
            ConfigError: The folder cannot be written, or the environment has a mode that is none.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / METRICS_FILE
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"output_dir: {folder}: cannot be written: {error}") from error
        self._phases: set[str] = set()
        self._wandb: Any = None
        self.mode = "disabled"
        wanted = wandb_mode(mode, os.environ)
        # what cannot be sent now can be later, with wandb sync
        tried = {"disabled": (), "offline": ("offline",)}.get(wanted, (wanted, "offline"))
        for mode in tried:
            try:
                self._wandb = self._start_wandb(mode, run_id=run_id, name=name, project=project, config=config)
            except Exception as error:  # whatever it is: numbers are in the file
                _warn(
                    f"W&B does not start {mode} ({_in_one_line(error)}); the run goes on, numbers are in {self._path}"
                )
            else:
                self.mode = mode
                break

    def _start_wandb(self, mode: str, *, run_id: str, name: str, project: str, config: Mapping[str, Any]) -> Any:
        import wandb  # on this rank alone: it takes most of a second, and reads hundreds of files

        try:
            return wandb.init(
                project=project,
                name=name,
                dir=str(self._path.parent),
                config=dict(config),
                mode=mode,  # type: ignore[arg-type]
                id=run_id,
                resume="allow" if mode in SENDING else None,  # elsewhere there is nothing to look it up in
                settings=wandb.Settings(silent=True, console="off", init_timeout=START_TIMEOUT_S),
            )
        except Exception:
            wandb.teardown()  # its service would hold on to the run's id
            raise

    def rewind(self, phase: str, step: int, scored_step: int = 0) -> None:
        """Forget what the file says of a phase beyond a step, and of its scores beyond another: it comes again.

        A half-written last line goes, too.
        """
        self._file.close()
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and not _is_beyond(line, phase, step, scored_step)]
        if kept != lines:
            beside = self._path.with_name(f".{METRICS_FILE}")
            beside.write_text("".join(kept), encoding="utf-8")
            beside.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Record a phase's values at a step (optimizer steps, from 1; 0 for results of the phase as a whole)."""
        record = {"time": round(time.time(), 3), "phase": phase, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._to_wandb(lambda: self._log_to_wandb(phase, step, values))

    def _log_to_wandb(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if phase not in self._phases:  # each phase counts its own steps
            self._phases.add(phase)
            self._wandb.define_metric(f"{phase}/step")
            self._wandb.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._wandb.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in values.items()}})

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Final values of the run."""
        self._to_wandb(lambda: self._wandb.summary.update(dict(values)))

    def close(self) -> None:
        """Finish both."""
        with contextlib.suppress(OSError):  # of a disk that refused a record, which was said then
            self._file.close()
        # it may want to upload something first, on a network that is down
        thread = threading.Thread(target=self._to_wandb, args=(lambda: self._wandb.finish(),), daemon=True)
        thread.start()
        thread.join(FINISH_TIMEOUT_S)
        if thread.is_alive():
            _warn(f"W&B does not finish within {FINISH_TIMEOUT_S:g} s: left behind")

    def _to_wandb(self, call: Callable[[], object]) -> None:
        """Call W&B. A service that breaks is no reason to lose a run: it is said once, and the file has all numbers."""
        if self._wandb is None:
            return
        try:
            call()
        except Exception as error:
            self._wandb = None
            _warn(f"W&B no longer answers ({_in_one_line(error)}); the run goes on, all numbers are in {self._path}")


def _is_beyond(line: str, phase: str, step: int, scored_step: int) -> bool:
    record = json.loads(line)
    is_score = any(name.startswith("eval/") for name in record)
    return record["phase"] == phase and record["step"] > (scored_step if is_score else step)


def _warn(text: str) -> None:
    print(f"WARN {text}", file=sys.stderr, flush=True)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
