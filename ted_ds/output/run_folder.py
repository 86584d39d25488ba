"""What the output folder says of the run as a whole: whose it is, and whether it was stopped on request."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import sync

RUN_FILE = "run.json"
STOPPED_FILE = "stopped.json"
STARTS_FILE = "starts.jsonl"
NOT_FINITE_FILE = "not_finite.json"


@dataclass(frozen=True)
class Run:
    """What a run keeps whenever it is started again."""

    run_id: str
    """Also that of its W&B run."""
    teacher_host: str | None = None
    """Where the teacher's weights are, as ``teacher.host: auto`` found out when the run began; else None."""
    deepspeed: str | None = None
    """The name of the DeepSpeed file that ships, as ``deepspeed: auto`` found out likewise; else None."""
    teacher_precision: dict[str, Any] | None = None
    """In how many bits the teacher is, as ``teacher.precision: auto`` found out likewise, with all that was measured;
    else None."""


def read_run(output_dir: Path) -> Run | None:
    """The run that began this folder; None for a new folder.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = output_dir / RUN_FILE
    return run_of(file.read_text(encoding="utf-8", errors="replace"), str(file)) if file.is_file() else None


def run_of(text: str, file: str) -> Run:
    """The run that a file, called so in messages, is about.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        content = json.loads(text)
        found = (content.get(name) for name in ("teacher_host", "deepspeed", "teacher_precision"))
        run = Run(content["run_id"], *found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r}); restore it, or choose another output_dir") from error
    if not isinstance(run.run_id, str) or not run.run_id.isalnum():
        raise CheckpointError(f"{file}: run_id {run.run_id!r} is none; restore it, or choose another output_dir")
    return run


def new_run() -> Run:
    """A run with an id of its own."""
    return Run(secrets.token_hex(8))


def begin_run(output_dir: Path, run: Run) -> None:
    """Say whose the folder is, and that it runs. On one rank only."""
    file = output_dir / RUN_FILE
    if read_run(output_dir) != run:
        beside = file.with_name(f".{RUN_FILE}")
        beside.write_text(json.dumps(asdict(run)) + "\n", encoding="utf-8")
        sync(beside)
        beside.replace(file)
    for sign in (STOPPED_FILE, NOT_FINITE_FILE):
        (output_dir / sign).unlink(missing_ok=True)


def note_start(output_dir: Path, about: Mapping[str, Any]) -> None:
    """Add a line, with the time, about a start of the run or where it went on. On one rank only."""
    with (output_dir / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **about}) + "\n")


def read_starts(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of :func:`note_start`; one that was cut short by a kill is left out."""
    file = output_dir / STARTS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def mark_not_finite(output_dir: Path, message: str) -> None:
    """Leave the sign that the run ended by its numbers, and by nothing around it. On one rank only."""
    (output_dir / NOT_FINITE_FILE).write_text(json.dumps({"message": message}) + "\n", encoding="utf-8")


def forget_not_finite(output_dir: Path) -> None:
    """Take that sign away, as the run is started again: it may end before it comes to do so itself."""
    (output_dir / NOT_FINITE_FILE).unlink(missing_ok=True)


def was_not_finite(output_dir: Path) -> bool:
    """Whether the last start of the run ended by its numbers."""
    return (output_dir / NOT_FINITE_FILE).is_file()


def mark_stopped(output_dir: Path, about: Mapping[str, Any]) -> None:
    """Leave the sign that the run was stopped on request and can be started again: exit codes get lost on the way.

    On one rank only.
    """
    (output_dir / STOPPED_FILE).write_text(json.dumps(dict(about), indent=1) + "\n", encoding="utf-8")
