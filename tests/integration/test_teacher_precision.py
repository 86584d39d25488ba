"""Runs that find out in how many bits their teacher may be, and keep to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import run
from tests.tiny import write_run

STEPS = ("distill.max_steps=2", "evaluation.max_examples=4")


def no_clock(_rank: int, *, worth_it: float = 1e9) -> None:
    """Let any way be fast enough: a tiny teacher tells nothing of it."""
    from ted_ds.vetting import teacher_precision

    teacher_precision.WORTH_IT = worth_it


def kept(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())["teacher_precision"]


@pytest.mark.parametrize(
    ("kind", "method"), [("causal_lm", "ted"), pytest.param("sequence_classification", "kd", marks=pytest.mark.slow)]
)
def test_a_teacher_in_16_bits_teaches_a_student_in_32(tmp_path: Path, kind: str, method: str) -> None:
    recipe = write_run(tmp_path, kind=kind, method=method)
    arguments = ["run", str(recipe), *STEPS, "precision=fp32", "teacher.precision=auto"]
    caches = tmp_path / "caches"
    begun = run([*arguments, f"teacher.cache={{max_gib: 1, dir: {caches}}}"], fault=no_clock)
    assert "teacher.precision: auto: bf16 (bf16 is off by a KL of " in begun
    found = kept(tmp_path / "run")
    assert (found["precision"], found["host"], found["beside"], found["max_kl"]) == ("bf16", "replica", "fp32", 0.01)
    (measured,) = found["measured"]
    assert 0 < measured["kl"] < 0.01
    assert measured["of_time"] > 0
    assert "teacher_precision" in (tmp_path / "run" / "distill" / "manifest.json").read_text()
    (cache,) = caches.glob("*")

    # what was found is kept, whatever clocks would say now
    again = run([*arguments, f"teacher.cache={{max_gib: 1, dir: {caches}}}"])
    assert "teacher.precision: auto: bf16, as when this run began" in again
    assert "distill: complete, skipped" in again
    assert kept(tmp_path / "run") == found

    # another bound, another teacher, another cache; and its answers are not the same ones
    strict = [*arguments, "teacher.precision_max_kl=1e-12", f"output_dir={tmp_path / 'strict'}"]
    output = run([*strict, f"teacher.cache={{max_gib: 1, dir: {caches}}}"], fault=no_clock)
    assert "teacher.precision: auto: fp32 (bf16 is off by a KL of " in output
    assert kept(tmp_path / "strict")["precision"] == "fp32"
    assert "teacher_precision" not in (tmp_path / "strict" / "distill" / "manifest.json").read_text()
    (other,) = set(caches.glob("*")) - {cache}
    assert {file.name for file in other.iterdir()} >= {"about.json"}

    refused = run([*arguments, f"teacher.cache={{max_gib: 1, dir: {caches}}}", "teacher.precision=null"], codes=2)
    assert "was completed with other settings: teacher_precision was 'bf16', now None" in refused


def test_a_run_that_began_without_it_goes_on_without_it(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, method="kd")
    arguments = ["run", str(recipe), *STEPS, "precision=fp32"]
    run(arguments, num_ranks=1)
    output = run([*arguments, "teacher.precision=auto"], num_ranks=1, fault=no_clock)
    assert "teacher.precision: auto: fp32 (the run began without it)" in output
    assert "distill: complete, skipped" in output
