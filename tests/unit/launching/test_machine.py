"""What a machine has, as its system and ``nvidia-smi`` tell it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from ted_ds.launching import machine
from ted_ds.launching.machine import Gpu, available_bytes, computes_bf16, num_cores, visible_gpus

SAID = "0, GPU-aa11, 80000, NVIDIA H100\n1, GPU-bb22, 70000, NVIDIA H100\n2, GPU-cc33, [N/A], NVIDIA H100, divided\n"
FIRST, SECOND = Gpu("NVIDIA H100", 80000 * 2**20), Gpu("NVIDIA H100", 70000 * 2**20)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2\nmodel name: bf16\n", False),
        (None, False),
    ],
)
def test_bf16_is_taken_where_the_cpu_says_so(tmp_path, info, expected):
    file = tmp_path / "cpuinfo"
    if info is not None:
        file.write_text(info)
    assert computes_bf16(file) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [FIRST, SECOND]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [SECOND]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aa, 1"}, [FIRST, SECOND]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"DS_ACCELERATOR": "cpu"}, []),
    ],
)
def test_gpus_are_those_that_a_run_would_see(tmp_path, monkeypatch, environment, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SAID}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus(environment) == expected


def test_there_is_no_gpu_where_nothing_tells_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus({}) == []


@pytest.mark.parametrize(
    ("limit", "left"), [("max", None), (str(2**40), None), ("4000", 4000 - 3000 + 500), (None, None)]
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, left):
    if limit is not None:
        for name, text in (("max", limit), ("current", "3000"), ("stat", "anon 1\ninactive_file 500")):
            (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(machine, "CGROUP", Path(tmp_path))
    system = psutil.virtual_memory().available
    found = available_bytes()
    assert found == left if left is not None else 0.5 * system < found < 2 * system


def test_cores_are_those_that_this_process_may_use():
    assert num_cores() == len(os.sched_getaffinity(0))
