"""What CPUs cannot show: kernels of a GPU, its determinism, its faults, and the whole method on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.runtime.device_faults import is_device_fault
from tests.integration.launching import Outcome, alone
from tests.runs import differences, traces
from tests.tiny import ROOT, write_run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
WIDTH, VOCAB, TOKENS = 256, 4096, 512
# of each gradient's norm, four times what CPUs show at these widths or more: to be replaced by what a GPU shows
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def on_gpu(*arguments: str, **variables: str) -> Outcome:
    """``ted-ds`` in a process of its own that computes on the GPU."""
    return alone(*arguments, **{"DS_ACCELERATOR": "cuda", **variables})


def finished(*arguments: str, **variables: str) -> str:
    done = on_gpu(*arguments, **variables)
    assert done.code == 0, done.output
    return done.output


def python(script: str, **variables: str) -> str:
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_phases_run_in_16_bits(tmp_path, stage):
    recipe = str(write_run(tmp_path))
    said = finished(
        "run",
        recipe,
        f"deepspeed={ROOT}/ds_configs/deepspeed/zero{stage}.json",
        "precision=bf16",
        "distill.max_steps=6",
    )
    assert "on 1 x cuda" in said
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert all(0 < one["loss"] < 20 for one in scores.values())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_losses_of_a_vocabulary_are_those_of_fp64_on_a_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(2, TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(2))
    weight, teacher_weight = ((torch.randn(VOCAB, WIDTH, generator=generator) * 0.1).to(dtype) for _ in range(2))
    labels = torch.randint(VOCAB, (2, TOKENS), generator=generator)
    labels[torch.rand(2, TOKENS, generator=generator) < 0.3] = -100

    own = [one.cuda().requires_grad_() for one in (hidden, weight)]
    teacher = TeacherPredictions(teacher_hidden.cuda(), teacher_weight.cuda(), None, 2.0, 2.5, None)
    sums = vocabulary_losses(*own, None, VocabularyTargets(labels.cuda(), 0.7, teacher))
    gradients = torch.autograd.grad(sums[0], own)

    leaves = [one.double().requires_grad_() for one in (hidden, weight)]
    kept = labels != -100
    logits = F.linear(*leaves)[kept]
    theirs = F.linear(teacher_hidden.double(), teacher_weight.double())[kept]
    task = F.cross_entropy(logits, labels[kept], reduction="sum")
    softened = [F.log_softmax(one / 2.0, -1) for one in (logits, theirs)]
    kl = F.kl_div(*softened, reduction="sum", log_target=True)
    expected = torch.autograd.grad(0.7 * task + 2.5 * kl, leaves)
    for one, other in zip([*sums[1:], *gradients], [task, kl, *expected], strict=True):
        assert (one.cpu().double() - other).norm() <= TOLERANCE[dtype] * other.norm()


@pytest.mark.parametrize("stage", [1, 3])
def test_the_same_bits_twice_and_after_a_stop(tmp_path, stage):
    """``deterministic: true``: twice the same, and a run that is stopped and goes on is the one that was not."""
    recipe = str(write_run(tmp_path))
    words = ["run", recipe, f"deepspeed={ROOT}/ds_configs/deepspeed/zero{stage}.json", "precision=bf16"]
    words += ["deterministic=true", "distill.max_steps=8", "checkpoint.every_steps=2"]
    for name in ("first", "second"):
        finished(*words, f"output_dir={tmp_path}/{name}")
    stopped = on_gpu(*words, f"output_dir={tmp_path}/stopped", "stop_after_minutes=0.001")
    assert stopped.code == 75, stopped.output
    finished(*words, f"output_dir={tmp_path}/stopped")
    first = traces(tmp_path / "first")
    for name in ("second", "stopped"):
        assert differences(first, traces(tmp_path / name)) == [], name


def test_hosts_of_the_teacher_give_the_same_bits(tmp_path):
    recipe = str(write_run(tmp_path))
    hosts = ("replica", "cpu_offload")
    for host in hosts:
        finished("run", recipe, f"teacher.host={host}", "deterministic=true", f"output_dir={tmp_path}/{host}")
    assert differences(*(traces(tmp_path / host) for host in hosts)) == []


def test_fp16_finds_its_scale_and_steps(tmp_path):
    recipe = str(write_run(tmp_path))
    finished("run", recipe, "precision=fp16", "distill.max_steps=30", "max_consecutive_skips=25")
    reports = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [one["loss/total"] for one in reports if one["phase"] == "distill"]
    assert all(0 < loss < 100 for loss in losses)
    assert losses[-1] < losses[0]


def test_the_one_gpu_that_is_visible_is_taken():
    script = (
        "from deepspeed.accelerator import get_accelerator; import os, torch\n"
        "from ted_ds.runtime.devices import take_device\n"
        "own = take_device(get_accelerator(), 'nccl')\n"
        "print(own.identity, own.fault, os.environ['LOCAL_RANK'], torch.cuda.current_device())"
    )
    identity, fault, local_rank, device = python(script, CUDA_VISIBLE_DEVICES="0", LOCAL_RANK="3").split()
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
    answer, _, text = python(script).partition(" ")
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
    full, short = map(float, python(script).split())
    assert full < 1e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-5 < short < 1e-2
