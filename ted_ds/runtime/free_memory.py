"""How much memory a rank may still use, as the machine says."""

from __future__ import annotations

import socket

import torch

from ted_ds.launching.machine import available_bytes
from ted_ds.runtime.world import World


def free_device_bytes(world: World) -> int:
    """Free bytes of a rank's device, of the rank that has least; on the CPU, its share of the host's.

    Every rank must call it.
    """
    if world.device.type == "cuda":
        return min(world.gather(torch.cuda.mem_get_info(world.device)[0]))
    return free_host_bytes(world)


def free_host_bytes(world: World) -> int:
    """Free bytes of host memory for each rank, on the host that has least. Every rank must call it."""
    hosts = world.gather((socket.gethostname(), available_bytes()))
    names = [name for name, _ in hosts]
    return min(free // names.count(name) for name, free in hosts)
