"""What the output folder says of the run as a whole: whose it is, and whether it was stopped on request."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import CheckpointError
from ted_ds.phases import sync

RUN_FILE = "run.json"
STOPPED_FILE = "stopped.json"


def read_run_id(output_dir: Path) -> str | None:
    """The id under which this folder was begun, also that of its W&B run; None for a new folder.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = output_dir / RUN_FILE
    if not file.is_file():
        return None
    try:
        run_id = json.loads(file.read_text(encoding="utf-8"))["run_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged ({error!r}); restore it, or choose another output_dir") from error
    if not isinstance(run_id, str) or not run_id.isalnum():
        raise CheckpointError(f"{file}: run_id {run_id!r} is none; restore it, or choose another output_dir")
    return run_id


def new_run_id() -> str:
    """An id for a new run."""
    return secrets.token_hex(8)


def begin_run(output_dir: Path, run_id: str) -> None:
    """Say whose the folder is, and that it runs. On one rank only."""
    file = output_dir / RUN_FILE
    if not file.is_file():
        beside = file.with_name(f".{RUN_FILE}")
        beside.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        sync(beside)
        beside.replace(file)
    (output_dir / STOPPED_FILE).unlink(missing_ok=True)


def mark_stopped(output_dir: Path, about: Mapping[str, Any]) -> None:
    """Leave the sign that the run was stopped on request and can be started again: exit codes get lost on the way.

    On one rank only.
    """
    (output_dir / STOPPED_FILE).write_text(json.dumps(dict(about), indent=1) + "\n", encoding="utf-8")
