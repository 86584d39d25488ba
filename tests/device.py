"""The device that tests compute on: the CPU, or the first GPU with ``TED_DS_TEST_DEVICE=cuda``.

Tests that go by it are the same on both: what a GPU is to show has been seen to work here, and what the CPU shows is
asked of a GPU, too. ``ON_BOTH`` are their files; ``tests/gpu`` holds what there is more to ask of one.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

VARIABLE = "TED_DS_TEST_DEVICE"
DEVICE = torch.device(os.environ.get(VARIABLE) or "cpu")
KERNELS_VARIABLE = "TED_DS_TEST_KERNELS"
KERNELS: Any = os.environ.get(KERNELS_VARIABLE) or "torch"
"""What computes with a vocabulary's logits: torch, or triton (on a CPU with TRITON_INTERPRET=1)."""
OF_KERNELS = ("tests/parity/test_vocabulary.py", "tests/parity/test_divergences.py", "tests/parity/test_likeness.py")
"""Files whose tests go by it."""
IS_CPU = DEVICE.type == "cpu"
ON_BOTH = (
    "tests/parity/test_vocabulary.py",
    "tests/parity/test_fused.py",
    "tests/parity/test_divergences.py",
    "tests/parity/test_packing.py",
    "tests/parity/test_execution.py",
    "tests/parity/test_waiting.py",
    "tests/parity/test_bit_hash.py",
    "tests/distributed/test_optimizers.py",
)
of_a_gpu = pytest.mark.skipif(IS_CPU, reason=f"NOT RUN: only a GPU can show it ({VARIABLE}=cuda)")
of_the_cpu = pytest.mark.skipif(not IS_CPU, reason="it is about how a CPU computes, or how precisely")


def take_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels go through a row of 31 ids in more than one block, the last of which is not full."""
    if KERNELS == "triton":
        from ted_ds.numerics import triton_rows

        monkeypatch.setattr(triton_rows, "BLOCK", 16)


def share_gpus(num_ranks: int) -> None:
    """Let ranks of which there are more than GPUs sum up by gloo, which takes a GPU's tensors: NCCL wants one each."""
    if not IS_CPU and num_ranks > torch.cuda.device_count():
        from deepspeed.accelerator import get_accelerator

        accelerator: Any = get_accelerator()
        accelerator._communication_backend_name = "gloo"
