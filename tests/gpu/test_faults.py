"""What a GPU that is full, asserts, or is the only one that is seen comes to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ted_ds.runtime.device_faults import is_device_fault
from tests.device import of_a_gpu
from tests.tiny import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180), of_a_gpu]


def python(script: str, **variables: str) -> str:
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_one_gpu_that_is_visible_is_taken():
    script = (
        "from deepspeed.accelerator import get_accelerator; import os, torch\n"
        "from ted_ds.runtime.devices import take_device\n"
        "own = take_device(get_accelerator(), 'nccl')\n"
        "print(own.identity, own.fault, os.environ['LOCAL_RANK'], torch.cuda.current_device())"
    )
    last = python(script, CUDA_VISIBLE_DEVICES="0", LOCAL_RANK="3").splitlines()[-1]
    identity, fault, local_rank, device = last.split()
    assert identity not in ("None", "")
    assert (fault, local_rank, device) == ("None", "0", "0")


def test_an_assert_in_a_kernel_is_a_defect_and_no_fault_of_the_gpu():
    script = (
        "import torch\n"
        "from ted_ds.runtime.device_faults import is_device_fault\n"
        "try:\n"
        "    torch.zeros(3, device='cuda')[torch.tensor([7], device='cuda')].cpu()\n"
        "except RuntimeError as error:\n"
        "    print(is_device_fault(error), str(error).splitlines()[0])"
    )
    answer, _, text = python(script).splitlines()[-1].partition(" ")
    assert answer == "False", text
    assert "device-side assert" in text


def test_memory_that_is_full_is_no_fault_of_the_gpu():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert not is_device_fault(caught.value)


def test_tf32_is_what_the_recipe_says():
    script = (
        "import torch\n"
        "from ted_ds.runtime.arithmetic import set_arithmetic\n"
        "a = torch.randn(512, 512, device='cuda'); b = torch.randn(512, 512, device='cuda')\n"
        "exact = a.double() @ b.double()\n"
        "for tf32 in (False, True):\n"
        "    set_arithmetic(tf32=tf32, deterministic=False, attention='auto')\n"
        "    print(((a @ b).double() - exact).norm().item() / exact.norm().item())"
    )
    full, short = map(float, python(script).split()[-2:])
    assert full < 1e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-5 < short < 1e-2


def test_a_deterministic_run_multiplies():
    """cuBLAS reads its variable as it is first used; torch refuses to multiply without it."""
    script = (
        "import torch\n"
        "from ted_ds.runtime.arithmetic import set_arithmetic\n"
        "set_arithmetic(tf32=False, deterministic=True, attention='auto')\n"
        "a = torch.randn(64, 64, device='cuda', requires_grad=True)\n"
        "(a @ a).sum().backward(); print(bool(a.grad.isfinite().all()))"
    )
    assert python(script, CUBLAS_WORKSPACE_CONFIG=":4096:8").split()[-1] == "True"
