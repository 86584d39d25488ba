"""What glibc does with memory that a process frees: on a CPU, a quarter of a step's time is at stake."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from deepspeed.accelerator import get_accelerator

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of ``malloc.h``."""
OPTIONS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20}
"""No memory of its own for any tensor; never any back; and more at once, in bytes."""


def keep_freed_memory() -> bool:
    """Let this process, where its tensors are in host memory, keep what it frees; returns whether it does so now.

    glibc gives each large tensor memory of its own, returns it to the system when it is freed, and has each page of the
    next one zeroed anew. It is for processes that are there for a run alone: what they have had stays theirs to their
    end. Settings that somebody made by glibc's own variables of the environment hold, and other C libraries have no
    such options.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    said = "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)
    accelerator: Any = get_accelerator()
    library = ctypes.CDLL(None)
    if said or accelerator.device_name() != "cpu" or not hasattr(library, "gnu_get_libc_version"):
        return False
    answers = [library.mallopt(option, value) for option, value in OPTIONS.items()]
    return all(answers)
