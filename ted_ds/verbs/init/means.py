"""What there is to train with: ranks, their memory, and how much they compute."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ted_ds.launching.machine import available_bytes, computes_bf16, num_cores, visible_gpus
from ted_ds.planning.memory import gib

TFLOPS_OF_GPU = 400.0
"""What ``ted-ds check`` takes for granted, too."""
SIZE, TRIALS = 512, 20
"""Of matrices by which a CPU is measured, and how many products."""
EFFICIENCY_OF_BF16, EFFICIENCY_OF_FP32 = 0.75, 0.4
"""Of training, beside products of matrices in fp32. In bf16 0.77 was measured for MiniLM and 0.98 for SmolLM2 (see
docs/results.md): fewer steps than there is time for are better than more."""


@dataclass(frozen=True)
class Means:
    """What each rank has."""

    num_ranks: int
    free: int
    """Bytes of its device, which may be the host's memory."""
    where: str
    """That, in words."""
    is_cpu: bool
    tflops: float
    """What it computes in training, about, in 10^12 operations a second."""
    bf16: bool
    """Whether it is quick in bf16."""

    @property
    def memory_in_words(self) -> str:
        """What is free."""
        return f"{gib(self.free)} {self.where}"


def find_means(num_ranks: int | None, gpu_gib: float | None) -> Means:
    """Look at this machine.

    Args:
        num_ranks: As many as are asked for; None: one for each GPU here, or one.
        gpu_gib: Memory of a rank's GPU where the run is to be on another machine.
    """
    if gpu_gib is not None:
        return Means(num_ranks or 1, int(gpu_gib * 2**30), "of its GPU (--gpu)", False, TFLOPS_OF_GPU, bf16=True)
    gpus = visible_gpus(os.environ)
    if gpus:
        free = min(one.free for one in gpus)
        where = f"that are free on {'this' if len(gpus) == 1 else 'each'} {gpus[0].name}"
        return Means(num_ranks or len(gpus), free, where, False, TFLOPS_OF_GPU, bf16=True)
    ranks, is_quick = num_ranks or 1, computes_bf16()
    own = "" if ranks == 1 else f", shared by {ranks} ranks"
    where = f"that are free here{own}"
    cores = min(num_cores(), ranks * _threads(os.environ))
    tflops = _measured_tflops(cores) / ranks * (EFFICIENCY_OF_BF16 if is_quick else EFFICIENCY_OF_FP32)
    return Means(ranks, available_bytes() // ranks, where, True, float(f"{tflops:.2g}"), bf16=is_quick)


def _threads(environment: Mapping[str, str]) -> int:
    """Of each rank, as torch takes them."""
    said = environment.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else num_cores()


def _measured_tflops(num_threads: int) -> float:
    """What so many threads make of products of matrices in fp32, each by the time that it has.

    So it is the same whatever else goes on here. They are measured side by side, as two cores of a virtual machine may
    be the halves of one.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    matrix = np.ones((SIZE, SIZE), np.float32)

    def seconds(_: int) -> float:
        np.matmul(matrix, matrix)
        started = time.thread_time()
        for _ in range(TRIALS):
            np.matmul(matrix, matrix)
        return time.thread_time() - started

    with threadpool_limits(1), ThreadPoolExecutor(num_threads) as threads:
        spent = [*threads.map(seconds, range(num_threads))]
    return sum(TRIALS * 2 * SIZE**3 / one for one in spent) / 1e12
