"""TensorBoard: event files in the output folder, a TensorBoard run for each phase.

Written with the ``tensorboard`` package's own records and messages, one after the other. (torch's ``SummaryWriter``
writes in a thread, where a full disk ends in a traceback that nobody can catch.)
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.output.trackers.backend import Backend, TrackedRun

FOLDER = "tensorboard"
FORMAT = "brain.Event:2"
"""In which the start of a file can say from which step on earlier files no longer hold."""
WHOLE_RUN = "."
"""The TensorBoard run of what belongs to no phase: hyperparameters and final values."""


class TensorBoardBackend(Backend):
    """A folder for each phase, as each counts its own steps, and a new file in it for each start.

    What comes again after a start hides what earlier files have of it.
    """

    title = "TensorBoard"

    def __init__(self) -> None:
        self._files: dict[str, _EventFile] = {}

    def open(self, run: TrackedRun) -> None:
        """Write the recipe's values as hyperparameters, by which TensorBoard compares runs."""
        self._folder = run.folder / FOLDER
        hyperparameters = _part("plugins.hparams.summary_v2").hparams_pb
        values = dict(_flat("", run.config))
        self._begin(WHOLE_RUN, hidden_from=0).add(0, hyperparameters(values, trial_id=run.run_id))

    def rewind(self, phase: str, step: int, scored_step: int) -> None:  # noqa: ARG002 - files hide all beyond one step
        """Begin a file that hides what others have beyond ``step``.

        A score of that very step may be there twice, once from each start.
        """
        self._begin(phase, hidden_from=step + 1)

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values, to be read at once."""
        file = self._files.get(phase) or self._begin(phase)
        file.add(step, _scalars(values))

    def summarise(self, values: Mapping[str, float]) -> None:
        """Write them beside the hyperparameters, as the metrics that runs are compared by."""
        self._files[WHOLE_RUN].add(0, _scalars(values))

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()

    def place(self) -> str:
        """The folder that TensorBoard is to be started with."""
        return str(self._folder)

    def _begin(self, name: str, hidden_from: int | None = None) -> _EventFile:
        if name in self._files:
            self._files[name].close()
        self._files[name] = _EventFile(self._folder / name, hidden_from)
        return self._files[name]


class _EventFile:
    """One file of events."""

    def __init__(self, folder: Path, hidden_from: int | None) -> None:
        events = _part("compat.proto.event_pb2")
        self._event = events.Event
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard knows it by "tfevents", and reads the files of a folder in the order of their names
        path = folder / f"events.out.tfevents.{time.time_ns():019d}"
        self._file = path.open("xb", buffering=0)
        self._records = _part("summary.writer.record_writer").RecordWriter(self._file)
        self._write(self._event(wall_time=time.time(), file_version=FORMAT))
        if hidden_from is not None:
            start = events.SessionLog(status=events.SessionLog.START)
            self._write(self._event(wall_time=time.time(), step=hidden_from, session_log=start))

    def add(self, step: int, summary: Any) -> None:
        """Write a summary at a step."""
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _scalars(values: Mapping[str, float]) -> Any:
    summary = _part("compat.proto.summary_pb2").Summary
    return summary(value=[summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()])


def _part(name: str) -> Any:
    return importlib.import_module(f"tensorboard.{name}")  # an optional package, needed on this rank alone


def _flat(path: str, value: Any) -> Iterator[tuple[str, bool | int | float | str]]:
    """Nested values by their paths in the recipe; lists as JSON, and nothing for null."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}" if path else str(name), inner)
    elif value is not None:
        yield path, value if isinstance(value, bool | int | float | str) else json.dumps(value)
