"""Starts a run again until it is complete: ``ted-ds supervise``."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.launching.attempt import run_attempt
from ted_ds.launching.hosts import Host, read_hostfile, wait_for_hosts, write_environment
from ted_ds.launching.outcome import RANK_LOST, STOPPED, Outcome
from ted_ds.launching.records import LOG_DIR, read_records
from ted_ds.launching.slurm import requeue, wait_for_slurm

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_S = 2.0
"""Signals that follow within it are the same request: a terminal, a batch system and a wrapper each pass one on."""
HOSTFILE_MARK, PORT_MARK = "{hostfile}", "{port}"
"""What the command has where the attempt's own go."""
FIRST_PORT, NUM_PORTS = 20_000, 10_000
SHORT_S, LONGEST_WAIT_S = 60.0, 60.0
"""After attempts that ended sooner, one waits ever longer before the next: 1, 2, 4, ... s."""


@dataclass(frozen=True)
class Settings:
    """How to supervise."""

    logs: Path
    """Gets a folder for each attempt; on all hosts."""
    restarts: int
    grace_s: float
    hostfile: Path | None = None
    """Of a launcher that goes over ssh."""
    min_hosts: int | None = None
    """How many of them will do; None for all."""
    host_wait_s: float = 0.0
    """How long to wait for hosts that do not answer."""
    in_slurm: bool = False
    """Whether this is the script of a Slurm job, which requeues itself."""


class Supervisor:
    """Starts one command until its run is complete, or fails for a reason that another attempt cannot mend."""

    def __init__(self, command: Sequence[str], settings: Settings) -> None:
        self._command, self._settings = list(command), settings
        self._num_requests, self._requested_at = 0, 0.0
        self._first_signal: int | None = None

    def run(self) -> int:
        """The exit code: 0 complete, 75 stopped on request, 76 a rank was lost; else what a rank failed with.

        Raises:
            TedError: It cannot be started at all.
        """
        for number in REQUESTS:
            signal.signal(number, self._take)
        hosts = read_hostfile(self._settings.hostfile) if self._settings.hostfile is not None else None
        if hosts is not None and not any(HOSTFILE_MARK in word for word in self._command):
            raise ConfigError(f"--hostfile: the command does not have {HOSTFILE_MARK} where the launcher's goes")
        restart, short_in_a_row = 0, 0
        while True:
            started = time.monotonic()
            folder, outcome = self._attempt(hosts)
            self._say(f"{folder}: {outcome.text}")
            if outcome.code not in (STOPPED, RANK_LOST):
                return outcome.code
            if outcome.code == STOPPED and self._settings.in_slurm:
                self._leave_stopped(folder)
                return STOPPED
            short_in_a_row = short_in_a_row + 1 if time.monotonic() - started < SHORT_S else 0
            if restart < self._settings.restarts and outcome.code == RANK_LOST:
                self._pause(min(2.0 ** (short_in_a_row - 1), LONGEST_WAIT_S) if short_in_a_row else 0.0)
            if self._num_requests:
                return outcome.code
            if restart == self._settings.restarts:
                self._say(f"given up after {restart} restarts")
                return outcome.code
            restart += 1
            self._say(f"restart {restart} of at most {self._settings.restarts}")

    def _attempt(self, hosts: Sequence[Host] | None) -> tuple[Path, Outcome]:
        folder = self._new_folder()
        environment = {**os.environ, LOG_DIR: str(folder), "PYTHONUNBUFFERED": "1"}
        command = self._command
        if hosts is not None:
            there = wait_for_hosts(
                hosts,
                at_least=self._settings.min_hosts or len(hosts),
                wait_s=self._settings.host_wait_s,
                say=self._say,
                is_over=lambda: self._num_requests > 0,
            )
            own_hostfile, variables = folder / "hostfile", folder / "environment"
            own_hostfile.write_text("".join(f"{host.line}\n" for host in there), encoding="utf-8")
            write_environment(variables, environment, Path.cwd())
            environment["DS_ENV_FILE"] = str(variables)
            command = [word.replace(HOSTFILE_MARK, str(own_hostfile)) for word in command]
        command = [word.replace(PORT_MARK, str(_free_port())) for word in command]
        self._say(f"{folder}: {shlex.join(command)}")
        outcome = run_attempt(
            command,
            folder,
            environment,
            grace_s=self._settings.grace_s,
            requests=lambda: self._num_requests,
            say=self._say,
        )
        return folder, outcome

    def _new_folder(self) -> Path:
        logs = self._settings.logs.absolute()
        try:
            logs.mkdir(parents=True, exist_ok=True)
            number = max((int(one.name.partition("_")[2]) for one in logs.glob("attempt_[0-9]*")), default=0) + 1
            folder = logs / f"attempt_{number:04d}"
            folder.mkdir()
        except OSError as error:
            raise ConfigError(f"--logs: {logs}: cannot be written: {error}") from error
        return folder

    def _leave_stopped(self, folder: Path) -> None:
        of_ranks = [] if self._num_requests else read_records(folder)
        # the time limit is announced by SIGUSR1
        if self._first_signal == signal.SIGTERM or any(one.asked == "SIGTERM" for one in of_ranks):
            wait_for_slurm(self._say)
        else:
            requeue(self._settings.restarts, self._say)

    def _pause(self, seconds: float) -> None:
        """Wait, until somebody asks to stop."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._num_requests:
            time.sleep(0.1)

    def _take(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        self._first_signal = self._first_signal or number
        if self._num_requests == 0 or now - self._requested_at > SAME_REQUEST_S:
            self._num_requests += 1
            self._requested_at = now

    def _say(self, text: str) -> None:
        print(f"supervise {time.strftime('%H:%M:%S')}: {text}", file=sys.stderr, flush=True)


def _free_port() -> int:
    """One that is free here, another for each attempt: that of the one before may still be taken."""
    while True:
        port = FIRST_PORT + secrets.randbelow(NUM_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
