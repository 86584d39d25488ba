"""One attempt of a run: the launcher's command, watched until it and all its ranks have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.launching.hosts import end_ranks
from ted_ds.launching.outcome import Outcome, outcome_of
from ted_ds.launching.records import STOP_FILE, read_records

LOOK_EVERY_S = 0.5
UNTIL_KILLED_S = 10.0


def run_attempt(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    grace_s: float,
    requests: Callable[[], int],
    say: Callable[[str], None],
) -> Outcome:
    """Start the command, wait for its end, and leave none of its ranks behind.

    Args:
        command: A launcher's.
        folder: Of the attempt's logs; its ranks know it by the environment.
        environment: Of the command.
        grace_s: How long the launcher may go on once a rank has ended: a rank that hangs would hold it for good.
        requests: How often this process was asked to stop so far: once for the ranks to save and stop, twice to end.
        say: Takes messages.

    Raises:
        ConfigError: The command cannot be started.
    """
    try:
        # a session of its own: Ctrl-C is for this process, which passes it on as a file
        launcher = subprocess.Popen([*command], env=dict(environment), start_new_session=True)  # noqa: S603 - no shell
    except OSError as error:
        raise ConfigError(f"{command[0]}: cannot be started: {error}") from error
    first_end: float | None = None
    while launcher.poll() is None:
        time.sleep(LOOK_EVERY_S)
        asked = requests()
        stop_file = folder / STOP_FILE
        if asked and not stop_file.exists():
            stop_file.touch()
        if asked > 1:
            say("second request: ends at once, nothing is saved")
            _end(launcher, folder, say)
        if first_end is None and any(one.ended is not None for one in read_records(folder)):
            first_end = time.monotonic()
        if first_end is not None and time.monotonic() - first_end > grace_s:
            say(f"a rank ended {grace_s:g} s ago and the launcher still waits: ending it")
            _end(launcher, folder, say)
    end_ranks(read_records(folder), folder, socket.gethostname(), say)
    return outcome_of(folder, launcher.returncode)


def _end(launcher: subprocess.Popen[bytes], folder: Path, say: Callable[[str], None]) -> None:
    end_ranks(read_records(folder), folder, socket.gethostname(), say)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(UNTIL_KILLED_S)
            return
