"""A case, copied so that its folder is never written, and the commands of its README, started in the copy."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.dist import CONTEXT

TIMEOUT_S, LOOK_EVERY_S = 180.0, 0.02
ONE_AT_A_TIME = threading.Lock()
"""Each start of a process looks at all others: from two threads, one would take the other's exit code."""
OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Done(NamedTuple):
    """A command that has ended."""

    command: str
    code: int | None
    """None for one that did not end in time, and was killed."""
    output: str

    @property
    def words(self) -> str:
        """What it printed, without the lines of tables and where they are wrapped."""
        return re.sub(r"[\s\u2500-\u257f]+", " ", self.output)

    @property
    def error(self) -> str:
        """Its message, if it ended with one."""
        return self.output.rpartition("error:\n")[2] if "error:\n" in self.output else ""


class Case:
    """A copy of a case's folder."""

    def __init__(self, source: Path, place: Path) -> None:
        """Copy a case to ``place``, which must not be there yet."""
        self._source, self.folder = source, place
        shutil.copytree(source, place)
        place.chmod(0o755)  # the original may be read-only
        for one in place.rglob("*"):
            one.chmod(0o755 if one.is_dir() else 0o644)
        self._before = self._files()
        self._num_commands = 0

    def again(self, name: str) -> Case:
        """Another copy, untouched."""
        return Case(self._source, self.folder.with_name(f"{self.folder.name}-{name}"))

    def start(self, *arguments: str) -> Done:
        """``python -m ted_ds ARGUMENTS`` with the folder as working directory, to its end."""
        self._num_commands += 1
        log = self.folder.with_name(f"{self.folder.name}.{self._num_commands}.log")
        process = CONTEXT.Process(target=_run, args=(self.folder, [*arguments], log))
        with ONE_AT_A_TIME:
            process.start()
        code, until = None, time.monotonic() + TIMEOUT_S
        while code is None and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            with ONE_AT_A_TIME:
                code = process.exitcode
        if code is None:
            process.kill()
        return Done(f"ted-ds {' '.join(arguments)}", code, log.read_text(errors="replace"))

    def written(self) -> list[str]:
        """Files and folders that were not there before."""
        return sorted(self._files() - self._before)

    def read(self, name: str) -> Any:
        """A JSON file."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def reports(self, phase: str, *, output: str = "run") -> list[dict[str, Any]]:
        """What a run reported of the steps of a phase."""
        lines = (self.folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [one for one in map(json.loads, lines) if one["phase"] == phase]

    def _files(self) -> set[str]:
        return {str(one.relative_to(self.folder)) for one in self.folder.rglob("*")}


def _run(folder: Path, arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    for name in OF_LAUNCHERS:
        os.environ.pop(name, None)
    os.environ.update(WANDB_MODE="disabled", WANDB_SILENT="true")
    sys.argv = ["ted-ds", *arguments]
    import torch

    from ted_ds import cli

    torch.set_num_threads(1)
    cli.entry()
