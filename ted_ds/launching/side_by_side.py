"""Commands on this machine, so many at once: each in a session of its own, with a log, and none left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ted_ds.errors import ConfigError

LOOK_EVERY_S = 0.2
OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its ranks, which the commands here are not."""
DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """A command."""

    name: str
    command: Callable[[], Sequence[str]]
    """Asked for as soon as it is started."""
    log: Path
    """Takes what it prints, behind what is there."""
    waits_for: Callable[[], str | None] = lambda: None
    """What must end first, in words; None where nothing must. A command that fails while this is so begins again."""


def command_of_run(arguments: Sequence[str], num_ranks: int) -> list[str]:
    """``ted-ds ARGUMENTS`` on so many ranks of this machine.

    Raises:
        ConfigError: There is no deepspeed launcher, which several need.
    """
    if num_ranks == 1:
        return [sys.executable, "-m", "ted_ds", *arguments]
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.is_file():
        raise ConfigError(f"study.ranks: {num_ranks}: {launcher}: no such launcher; use 1, or install deepspeed there")
    place = ["--num_gpus", str(num_ranks), "--master_port", str(_free_port())]
    return [str(launcher), *place, "--module", "ted_ds", *arguments]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment_of(slot: int, *, at_once: int, num_ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What the commands in one of ``at_once`` slots see: devices and cores are dealt out, where they are enough.

    Devices are those that ``CUDA_VISIBLE_DEVICES`` lists; without it, all commands see all of them.
    """
    found = {name: value for name, value in environment.items() if name not in OF_LAUNCHERS}
    devices = [one for one in environment.get(DEVICES, "").split(",") if one]
    if at_once > 1 and len(devices) >= at_once * num_ranks:
        found[DEVICES] = ",".join(devices[slot * num_ranks : (slot + 1) * num_ranks])
    found.setdefault(THREADS, str(max((os.cpu_count() or 1) // (at_once * num_ranks), 1)))
    return found


@dataclass
class SideBySide:
    """Runs commands, at most so many at once."""

    at_once: int
    num_ranks: int
    """Of each."""
    say: Callable[[str], object]
    is_asked: bool = field(default=False, init=False)
    """Whether this process was asked to stop."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests to stop: the commands get SIGTERM, and save what they have."""

        def ask(*_: object) -> None:
            self.is_asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, int, float], object]) -> None:
        """Run all of them, in order; ``ended(job, exit code, seconds)`` is called as each ends.

        Asked to stop, it begins no other and waits for those that have begun.
        """
        waiting = [*jobs]
        running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = {}
        said: set[str] = set()
        passed_on = False
        try:
            while running or (waiting and not self.is_asked):
                for slot in range(self.at_once):
                    if slot not in running and not self.is_asked:
                        self._begin_next(slot, waiting, running, said)
                if self.is_asked and not passed_on:
                    passed_on = True
                    for _, process, _ in running.values():
                        _signal(process, signal.SIGTERM)
                time.sleep(LOOK_EVERY_S)
                for slot, (job, process, started) in [*running.items()]:
                    code = process.poll()
                    if code is None:
                        continue
                    del running[slot]
                    if code != 0 and not self.is_asked and job.waits_for() is not None:
                        waiting.insert(0, job)
                    else:
                        ended(job, code, time.monotonic() - started)
        finally:
            for _, process, _ in running.values():
                _signal(process, signal.SIGKILL)
                process.wait()

    def _begin_next(
        self,
        slot: int,
        waiting: list[Job],
        running: dict[int, tuple[Job, subprocess.Popen[bytes], float]],
        said: set[str],
    ) -> None:
        for index, job in enumerate(waiting):
            reason = job.waits_for()
            if reason is None:
                del waiting[index]
                running[slot] = (job, self._start(job, slot), time.monotonic())
                return
            if job.name not in said:
                said.add(job.name)
                self.say(f"{job.name}: waiting for {reason}")

    def _start(self, job: Job, slot: int) -> subprocess.Popen[bytes]:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        seen = environment_of(slot, at_once=self.at_once, num_ranks=self.num_ranks, environment=os.environ)
        with job.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - no shell
                [*job.command()], env=seen, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
