"""How much memory a rank has taken at most, as a report says it."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 2**30
UNIT = 1 if sys.platform == "darwin" else 1024
"""Of what the system says, in bytes."""


def peak_gib(device: torch.device) -> dict[str, float]:
    """The most this process has held of its ``host``'s memory, and of its GPU's (``device``) where it has one.

    Since it began; workers that read data are processes of their own.
    """
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / GIB}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device) / GIB
    return found
