"""Who a process is, so that another one can tell whether it still lives."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

SAME_START_S = 2.0
"""How far apart two readings of when one process began may be: they are reckoned from when the machine started."""


@dataclass(frozen=True)
class Process:
    """A process on some machine; times are seconds since 1970, by its own clock."""

    host: str
    machine: str
    """Which start of which machine, and which namespace of process numbers; empty where that cannot be told."""
    number: int
    began: float

    @classmethod
    def own(cls) -> Process:
        """This one."""
        return cls(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time())

    def lives(self) -> bool | None:
        """Whether it does; None where it is on another machine, or that cannot be told."""
        if not self.machine or (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        try:
            found = psutil.Process(self.number)
            is_it = abs(found.create_time() - self.began) <= SAME_START_S  # or its number was given away again
            return is_it and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it is there, and another user's
            return True

    def __str__(self) -> str:
        return f"{self.host}:{self.number}"


def _machine() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
