"""Starts a run again until it is complete: ``ted-ds supervise``."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.launching.attempt import Attempt
from ted_ds.launching.hosts import Host, read_hostfile, wait_for_hosts, write_environment
from ted_ds.launching.outcome import RANK_LOST, STOPPED, FaultsInARow, Outcome
from ted_ds.launching.records import LOG_DIR, STOP_FILE, read_records
from ted_ds.launching.slurm import num_restarts, requeue, wait_for_slurm
from ted_ds.launching.starters import FIRST_PORT, NUM_PORTS, SAME_REQUEST_S

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
MOST_WITHOUT_RECORD = 3
"""Attempts in a row in which the same ranks left nothing: their host does not see the logs."""
MOST_FAULTS = 3
"""Attempts in a row that hardware of the same host ends: it is broken."""
HOSTFILE_MARK, PORT_MARK = "{hostfile}", "{port}"
"""What the command has where the attempt's own go."""
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
    excluded: tuple[str, ...] = ()
    """Hosts of the hostfile to leave out."""
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
            # nohup ignores that a terminal closes; what shells start with & ignores SIGINT, which is then meant
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
        hosts = self._hosts()
        restart, short_in_a_row, without_record = 0, 0, 0
        missing: tuple[int, ...] = ()
        faults = FaultsInARow()
        while True:
            started = time.monotonic()
            folder, outcome = self._attempt(hosts)
            self._say(f"{folder}: {outcome.text}")
            is_first = restart == 0 and not (self._settings.in_slurm and num_restarts(os.environ))
            if not outcome.has_records and (self._num_requests or not is_first):  # those before had: another may, too
                outcome = replace(outcome, code=RANK_LOST)
            if outcome.code not in (STOPPED, RANK_LOST):
                return outcome.code
            if outcome.code == STOPPED and not self._num_requests and (folder / STOP_FILE).exists():
                return STOPPED  # it was put there by hand
            if self._settings.in_slurm and (outcome.code == STOPPED or self._num_requests):
                self._leave_stopped(folder)
                return STOPPED
            without_record = without_record + 1 if outcome.missing and outcome.missing == missing else 1
            missing = outcome.missing
            if missing and without_record == MOST_WITHOUT_RECORD:
                self._say(
                    f"given up: {without_record} times the same ranks left nothing; give --logs a folder all hosts see"
                )
                return outcome.code
            if faults.add(outcome) == MOST_FAULTS:
                self._say(
                    f"given up: {MOST_FAULTS} times in a row hardware of {outcome.faulty_host} failed; look at it "
                    "(nvidia-smi -q, dmesg), or leave the host out (--exclude, of ted-ds supervise or sbatch)"
                )
                return outcome.code
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

    def _hosts(self) -> list[Host] | None:
        settings = self._settings
        if settings.hostfile is None:
            return None
        if not any(HOSTFILE_MARK in word for word in self._command):
            raise ConfigError(f"--hostfile: the command does not have {HOSTFILE_MARK} where the launcher's goes")
        hosts = read_hostfile(settings.hostfile)
        unknown = set(settings.excluded) - {host.name for host in hosts}
        if unknown:
            raise ConfigError(f"--exclude: {settings.hostfile} has no {', '.join(sorted(unknown))}")
        kept = [host for host in hosts if host.name not in settings.excluded]
        if not kept:
            raise ConfigError(f"--exclude: leaves no host of {settings.hostfile}")
        if (settings.min_hosts or 0) > len(kept):
            raise ConfigError(
                f"--min-hosts: {settings.min_hosts} is more than the {len(kept)} of {settings.hostfile}; lower it, or "
                "add hosts"
            )
        return kept

    def _attempt(self, hosts: Sequence[Host] | None) -> tuple[Path, Outcome]:
        folder = self._new_folder()
        environment = {**os.environ, LOG_DIR: str(folder), "PYTHONUNBUFFERED": "1"}
        command, there = self._command, None
        if hosts is not None:
            there = wait_for_hosts(
                hosts,
                at_least=self._settings.min_hosts or len(hosts),
                wait_s=self._settings.host_wait_s,
                say=self._say,
                is_over=lambda: self._num_requests > 0,
            )
            if self._num_requests:
                return folder, Outcome(STOPPED, "stopped on request before it began")
            own_hostfile, variables = folder / "hostfile", folder / "environment"
            own_hostfile.write_text("".join(f"{host.line}\n" for host in there), encoding="utf-8")
            write_environment(variables, environment, Path.cwd())
            environment["DS_ENV_FILE"] = str(variables)
            command = [word.replace(HOSTFILE_MARK, str(own_hostfile)) for word in command]
        command = [word.replace(PORT_MARK, str(_free_port())) for word in command]
        self._say(f"{folder}: {shlex.join(command)}")
        attempt = Attempt(
            command,
            folder,
            environment,
            hosts=None if there is None else [host.name for host in there],
            grace_s=self._settings.grace_s,
            say=self._say,
        )
        return folder, attempt.wait(lambda: self._num_requests)

    def _new_folder(self) -> Path:
        logs = self._settings.logs.absolute()
        try:
            logs.mkdir(parents=True, exist_ok=True)
            names = [re.fullmatch(r"attempt_(\d+)", one.name) for one in logs.iterdir()]
            number = max((int(name[1]) for name in names if name), default=0)
            while True:
                number += 1
                folder = logs / f"attempt_{number:04d}"
                with contextlib.suppress(FileExistsError):  # another run took it just now
                    folder.mkdir()
                    return folder
        except OSError as error:
            raise ConfigError(f"--logs: {logs}: cannot be written: {error}") from error

    def _leave_stopped(self, folder: Path) -> None:
        of_ranks = [] if self._num_requests else read_records(folder)
        # the time limit is announced by SIGUSR1
        if self._first_signal == signal.SIGTERM or any(one.asked == "SIGTERM" for one in of_ranks):
            wait_for_slurm(lambda: self._num_requests, self._say)
        else:
            requeue(self._settings.restarts, self._say)

    def _pause(self, seconds: float) -> None:
        """Wait, until somebody asks to stop."""
        if seconds:
            self._say(f"{seconds:g} s of pause, as the last attempt was a short one")
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
