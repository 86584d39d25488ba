"""Numbers in a file of the output folder, a JSON object a line; the one place that every run has."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping

from ted_ds.errors import ConfigError
from ted_ds.output.trackers.backend import Backend, TrackedRun

METRICS_FILE = "metrics.jsonl"


class JsonlBackend(Backend):
    """Writes each record to ``metrics.jsonl``, to be read at once."""

    title = "metrics"

    def open(self, run: TrackedRun) -> None:
        """Open the file, to add to it.

        Raises:
            ConfigError: The folder cannot be written.
        """
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            self.path = run.folder / METRICS_FILE
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"output_dir: {run.folder}: cannot be written: {error}") from error

    def rewind(self, phase: str, step: int, scored_step: int) -> None:
        """Forget what comes again, and a half-written last line."""
        self._file.close()
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and not _is_beyond(line, phase, step, scored_step)]
        if kept != lines:
            beside = self.path.with_name(f".{METRICS_FILE}")
            beside.write_text("".join(kept), encoding="utf-8")
            beside.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        record = {"time": round(time.time(), 3), "phase": phase, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def summarise(self, values: Mapping[str, float]) -> None:
        """Nothing: they are among what the phase ``evaluate`` logged."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # of a disk that refused a record, which was said then
            self._file.close()

    def place(self) -> str | None:
        """None: the run says it itself."""
        return None


def _is_beyond(line: str, phase: str, step: int, scored_step: int) -> bool:
    record = json.loads(line)
    is_score = any(name.startswith("eval/") for name in record)
    return record["phase"] == phase and record["step"] > (scored_step if is_score else step)
