"""How much memory a piece of work takes, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

TIMEOUT_S = 900


def peak_of(work: Callable[[], object], *, since: int | None = None) -> int:
    """The most bytes in use while ``work`` runs, beyond what was in use before it (or beyond ``since``)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = in_use() if since is None else since
        work()
        return torch.cuda.max_memory_allocated() - before
    before = in_use() if since is None else since
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    return _status_bytes("VmHWM") - before


def in_use() -> int:
    """Bytes on the device; on the CPU, resident in memory."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status_bytes("VmRSS")


def in_own_process(module: str, *arguments: str) -> int:
    """The number that ``python -m module arguments`` prints last, with glibc's allocator as it comes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=kept, timeout=TIMEOUT_S)
    return int(done.stdout.split()[-1])


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
