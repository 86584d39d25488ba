"""How much memory a rank may still use, as the machine says."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import torch

from ted_ds.runtime.world import World

CGROUP = Path("/sys/fs/cgroup")


def free_device_bytes(world: World) -> int:
    """Free bytes of a rank's device, of the rank that has least; on the CPU, its share of the host's.

    Every rank must call it.
    """
    if world.device.type == "cuda":
        return min(world.gather(torch.cuda.mem_get_info(world.device)[0]))
    return free_host_bytes(world)


def free_host_bytes(world: World) -> int:
    """Free bytes of host memory for each rank, on the host that has least. Every rank must call it."""
    hosts = world.gather((socket.gethostname(), _available()))
    names = [name for name, _ in hosts]
    return min(free // names.count(name) for name, free in hosts)


def _available() -> int:
    """What the system would give, and a container's limit allows."""
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
