"""Studies whose runs begin in a moment: forked from the study's process, which has the heavy imports already."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ted_ds.launching import side_by_side


class Forked:
    """A process of ``python -m ted_ds ARGUMENTS``, as ``subprocess.Popen`` has it, without the start of Python."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: Any, **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "ted_ds"]
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid:
            return
        os.setsid()
        os.environ.clear()
        os.environ.update(env)
        for descriptor in (1, 2):
            os.dup2(stdout.fileno(), descriptor)
        sys.argv = ["ted-ds", *command[3:]]
        try:
            from ted_ds import cli

            cli.entry()
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        finally:
            os._exit(1)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Wait for its end."""
        while self.poll() is None:
            os.sched_yield()
        assert self._code is not None
        return self._code


def fork_runs(_: int) -> None:
    """A fault of ``tests.runs``: the study in this process forks its runs."""
    side_by_side.subprocess.Popen = Forked  # type: ignore[assignment,misc]
