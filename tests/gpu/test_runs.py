"""Whole runs on a GPU: every phase and host, 16 bits, the same bits twice and after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.device import DEVICE, IS_CPU, of_a_gpu
from tests.integration.launching import Outcome, alone, forked
from tests.optional import MISSING, OPTIONAL
from tests.runs import differences, traces
from tests.tiny import ROOT, write_run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
LOSS = "loss/total"


def on_device(*arguments: str, **variables: str) -> Outcome:
    """``ted-ds`` in a process of its own that computes where tests do."""
    if IS_CPU and not variables:  # which can be copied from one that has all imports
        return forked(*arguments)
    return alone(*arguments, **{"DS_ACCELERATOR": DEVICE.type, **variables})


def finished(*arguments: str, **variables: str) -> str:
    done = on_device(*arguments, **variables)
    assert done.code == 0, done.output
    return done.output


def losses_of(folder: Path, phase: str = "distill") -> list[float]:
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [one[LOSS] for one in reports if one["phase"] == phase and LOSS in one]


def deepspeed(folder: Path, stage: int, **of_zero: Any) -> str:
    """A DeepSpeed JSON of ours, with more in its ``zero_optimization``."""
    config = json.loads((ROOT / "ds_configs" / "deepspeed" / f"zero{stage}.json").read_text())
    config["zero_optimization"] |= of_zero
    config["optimizer"] = {"type": "AdamW", "params": {"torch_adam": True}}
    file = folder / f"zero{stage}.json"
    file.write_text(json.dumps(config))
    return f"deepspeed={file}"


OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": not IS_CPU}}
WAYS: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "zero1": (1, {}, ()),
    "zero2, packed": (2, {}, ("attention=packed",)),
    "zero2, offloaded": (2, OFFLOADED, ()),
    "zero3, recomputed": (3, {}, ("activation_checkpointing=true",)),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_phases_run_in_16_bits(tmp_path, way):
    stage, of_zero, settings = WAYS[way]
    words = ("precision=bf16", "distill.max_steps=6", *settings)
    said = finished("run", str(write_run(tmp_path)), deepspeed(tmp_path, stage, **of_zero), *words)
    assert f"on 1 x {DEVICE.type}" in said
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert all(0 < one["loss"] < 20 for one in scores.values())


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_the_same_bits_twice_and_after_a_stop(tmp_path, attention):
    """``deterministic: true``: twice the same, and a run that is stopped and goes on is the one that was not."""
    words = ["run", str(write_run(tmp_path)), deepspeed(tmp_path, 2), "precision=bf16", f"attention={attention}"]
    words += ["deterministic=true", "distill.max_steps=8", "checkpoint.every_steps=2"]
    for name in ("first", "second"):
        finished(*words, f"output_dir={tmp_path}/{name}")
    stopped = on_device(*words, f"output_dir={tmp_path}/stopped", "stop_after_minutes=0.001")
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
    one, other = (traces(tmp_path / host) for host in hosts)
    # scored, the student is whole or sharded like the teacher: a CPU gave losses that differ by 1e-9 of them
    for name, values in one.pop("scores").items():
        assert other["scores"][name] == pytest.approx(values, rel=1e-6), name
    other.pop("scores")
    for trace in (one, other):
        trace["reports"] = [report for report in trace["reports"] if report["phase"] != "evaluate"]
        trace["scores"] = {}
    assert differences(one, other) == []


def test_a_teacher_in_8_bits_teaches_nearly_the_same(tmp_path):
    assert OPTIONAL.is_dir() or not IS_CPU, MISSING
    recipe = str(write_run(tmp_path))
    beside = {"PYTHONPATH": f"{ROOT}:{OPTIONAL}"} if OPTIONAL.is_dir() else {}
    for host in ("replica", "int8"):
        words = (f"teacher.host={host}", "precision=bf16", f"output_dir={tmp_path}/{host}")
        finished("run", recipe, deepspeed(tmp_path, 1), *words, **beside)
    plain, in_8_bits = (losses_of(tmp_path / host) for host in ("replica", "int8"))
    assert in_8_bits == pytest.approx(plain, rel=5e-2)
    assert in_8_bits != plain


@of_a_gpu  # DeepSpeed knows no fp16 on CPUs
def test_fp16_finds_its_scale_and_steps(tmp_path):
    recipe = str(write_run(tmp_path))
    words = ("precision=fp16", "distill.max_steps=30", "max_consecutive_skips=25")
    finished("run", recipe, deepspeed(tmp_path, 1), *words)
    losses = losses_of(tmp_path / "run")
    assert all(0 < loss < 100 for loss in losses)
    assert losses[-1] < losses[0]


def test_compiled_blocks_learn_the_same(tmp_path):
    recipe = str(write_run(tmp_path))
    for name in ("false", "true"):
        words = (f"torch_compile={name}", "precision=bf16", f"output_dir={tmp_path}/{name}")
        finished("run", recipe, deepspeed(tmp_path, 1), *words)
    plain, compiled = (losses_of(tmp_path / name) for name in ("false", "true"))
    assert compiled == pytest.approx(plain, rel=2e-2)  # of bf16
