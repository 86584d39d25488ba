"""Which GPU a rank takes, among those it sees; every rank hears of one that cannot be taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ted_ds.errors import TopologyError
from ted_ds.launching.starters import MPIRUN, TORCH


@dataclass(frozen=True)
class OwnDevice:
    """What a rank computes on."""

    host: str
    identity: str | None = None
    """A GPU's own, the same whoever looks at it; None where no two ranks can collide."""
    fault: str | None = None
    """Why it cannot be taken."""


def device_index(local_rank: int, num_visible: int) -> int:
    """Which of the visible GPUs is this rank's, counted from 0.

    ``srun --gpus-per-task=1`` (or ``--gpu-bind=single:1``) shows each rank its own GPU and no other, and so does a
    launcher that sets ``CUDA_VISIBLE_DEVICES`` for each; else all ranks of a host see all of its GPUs.

    Args:
        local_rank: Among the ranks of its host.
        num_visible: GPUs this process sees.

    Raises:
        TopologyError: There are fewer GPUs than ranks.
    """
    if num_visible == 1:
        return 0
    if local_rank >= num_visible:
        raise TopologyError(
            f"$LOCAL_RANK is {local_rank}, but this process sees {num_visible} GPUs, counted from 0: start no more "
            "ranks on a host than it has GPUs, or show each its own ($CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1)"
        )
    return local_rank


def take_device(accelerator: Any, backend: str) -> OwnDevice:
    """Make this rank's GPU the one that is used from now on; nothing to choose where it computes on a CPU.

    DeepSpeed goes by ``$LOCAL_RANK`` and sets the device again, so that the variable becomes the GPU's number.

    Args:
        accelerator: DeepSpeed's.
        backend: Of collectives; NCCL alone wants a GPU for each rank.
    """
    host = socket.gethostname()
    if accelerator.device_name() != "cuda":
        return OwnDevice(host)
    try:
        index = device_index(int(os.environ.get(TORCH.local_rank, "0")), accelerator.device_count())
    except TopologyError as error:  # the others wait for this rank: it goes on until they can hear of it
        return OwnDevice(host, fault=str(error))
    for name in (TORCH.local_rank, MPIRUN.local_rank):
        if name in os.environ:
            os.environ[name] = str(index)
    accelerator.set_device(index)
    identity = str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) if backend == "nccl" else ""
    return OwnDevice(host, identity or None)


def refuse_unusable(devices: Sequence[OwnDevice]) -> None:
    """Make sure that every rank has a GPU of its own.

    Args:
        devices: Of all ranks, in their order.

    Raises:
        TopologyError: Some rank has none, or two have the same.
    """
    for rank, device in enumerate(devices):
        if device.fault is not None:
            raise TopologyError(f"rank {rank} on {device.host}: {device.fault}")
    first: dict[tuple[str, str], int] = {}
    for rank, device in enumerate(devices):
        if device.identity is None:
            continue
        other = first.setdefault((device.host, device.identity), rank)
        if other != rank:
            raise TopologyError(
                f"ranks {other} and {rank} on {device.host} see one GPU ({device.identity}) between them, and NCCL "
                "wants one for each: start no more ranks on a host than it has GPUs"
            )
