"""What this machine has for the ranks that are started on it: memory, GPUs, instructions. Without torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
BF16_FLAG = re.compile(r"^(?:flags|Features)\b.*(?:avx512_bf16|amx_bf16|\bbf16)\b", re.MULTILINE)
"""In what Linux says of a CPU."""
ASK_FOR_GPUS = ("nvidia-smi", "--query-gpu=index,uuid,memory.free,name", "--format=csv,noheader,nounits")
ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Gpu:
    """One that ranks can use."""

    name: str
    free: int
    """Bytes."""


def available_bytes() -> int:
    """Of memory, what the system would give, and a container's limit allows."""
    available = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        # what it holds of files is given back when it is asked for
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:  # no container, or none with limits of this kind
        return available
    if limit == "max":
        return available
    return min(available, int(limit) - int(used) + int(cached.get("inactive_file", 0)))


def num_cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bf16(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for bf16, and so takes half as long with it; False where it does not say."""
    return cpu_info.is_file() and BF16_FLAG.search(cpu_info.read_text(encoding="utf-8", errors="replace")) is not None


def visible_gpus(environment: Mapping[str, str]) -> list[Gpu]:
    """NVIDIA's that a run started here would use, as ``nvidia-smi`` tells them; none where there is no such program."""
    if environment.get("DS_ACCELERATOR") == "cpu":
        return []
    try:
        said = subprocess.run(  # noqa: S603 - no shell
            ASK_FOR_GPUS, capture_output=True, text=True, check=True, timeout=ANSWER_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, or no GPU that answers
        return []
    visible, found = environment.get("CUDA_VISIBLE_DEVICES"), []
    wanted = None if visible is None else [one.strip() for one in visible.split(",")]
    for line in said.splitlines():
        index, uuid, free, name = (part.strip() for part in line.split(",", 3))
        is_wanted = wanted is None or index in wanted or any(one and uuid.startswith(one) for one in wanted)
        if is_wanted and free.isdecimal():  # some parts of a divided GPU do not say
            found.append(Gpu(name, int(free) * 2**20))
    return found
