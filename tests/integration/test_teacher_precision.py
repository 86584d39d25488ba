"""Runs that find out in how many bits their teacher may be, and keep to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ted_ds.output.phase_folder import MANIFEST
from tests.runs import run
from tests.tiny import write_model, write_run

STEPS = ("distill.max_steps=2", "evaluation.max_examples=4")


def no_clock(_rank: int, *, worth_it: float = 1e9) -> None:
    """Let any way be fast enough: a tiny teacher tells nothing of it."""
    from ted_ds.vetting import teacher_precision

    teacher_precision.WORTH_IT = worth_it


def kept(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())["teacher_precision"]


def inputs_of(folder: Path) -> Any:
    return json.loads((folder / "distill" / MANIFEST).read_text())["inputs"]


def arguments_of(tmp_path: Path, recipe: Path, *more: str) -> list[str]:
    cache = f"teacher.cache={{max_gib: 1, dir: {tmp_path / 'caches'}}}"
    return ["run", str(recipe), *STEPS, "precision=fp32", "teacher.precision=auto", cache, *more]


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, method="kd")
    begun = run(arguments_of(tmp_path, recipe), fault=no_clock, num_ranks=1)
    assert "teacher.precision: auto: bf16 (bf16 is off by a KL of " in begun
    found = kept(tmp_path / "run")
    assert (found["precision"], found["host"], found["beside"], found["max_kl"]) == ("bf16", "replica", "fp32", 0.01)
    (measured,) = found["measured"]
    assert 0 < measured["kl"] < 0.01
    assert measured["of_time"] > 0
    assert inputs_of(tmp_path / "run")["teacher_precision"] == "bf16"

    # whatever clocks would say now
    again = run(arguments_of(tmp_path, recipe), num_ranks=1)
    assert "teacher.precision: auto: bf16, as when this run began" in again
    assert "distill: complete, skipped" in again
    assert kept(tmp_path / "run") == found
    other = run(arguments_of(tmp_path, recipe, "teacher.precision=null"), codes=2, num_ranks=1)
    assert "was completed with other settings: teacher_precision was 'bf16', now None" in other


def without_phases(rank: int) -> None:
    """End as soon as the run is begun, before any phase."""
    from ted_ds.errors import DataError
    from ted_ds.phases import cut_student

    def fail(*_: Any) -> None:
        raise DataError("ended here")

    no_clock(rank)
    object.__setattr__(cut_student.WORK, "run", fail)


@pytest.mark.slow
def test_what_was_found_for_another_recipe_is_not_kept(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, method="kd")
    run(arguments_of(tmp_path, recipe), fault=without_phases, num_ranks=1, codes=2)
    assert kept(tmp_path / "run")["precision"] == "bf16"
    assert not (tmp_path / "run" / "distill").exists()
    strict = run(
        arguments_of(tmp_path, recipe, "teacher.precision_max_kl=1e-12"), fault=without_phases, num_ranks=1, codes=2
    )
    assert "teacher.precision: auto: fp32 (bf16 is off by a KL of " in strict
    less = run(arguments_of(tmp_path, recipe, "precision=bf16"), fault=without_phases, num_ranks=1, codes=2)
    assert "teacher.precision: auto: bf16 (" in less
    assert (kept(tmp_path / "run")["beside"], kept(tmp_path / "run")["precision"]) == ("bf16", "bf16")
    write_model(tmp_path / "teacher", "llama", seed=9)
    other = run(arguments_of(tmp_path, recipe, "precision=bf16"), fault=without_phases, num_ranks=1, codes=2)
    assert "teacher.precision: auto: bf16, as when" not in other


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_states_of_a_teacher_in_16_bits_are_compared_with_those_of_a_student_in_32(tmp_path: Path) -> None:
    """Filters of both, and steps, on two ranks, which take one choice."""
    recipe = write_run(tmp_path)
    output = run(["run", str(recipe), *STEPS, "precision=fp32", "teacher.precision=auto"], fault=no_clock)
    assert "teacher.precision: auto: bf16 (bf16 is off by a KL of " in output
    assert inputs_of(tmp_path / "run")["teacher_precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal_lm", "sequence_classification"])
def test_a_teacher_in_16_bits_has_a_cache_of_its_own(tmp_path: Path, kind: str) -> None:
    recipe = write_run(tmp_path, kind=kind, method="kd")
    run(arguments_of(tmp_path, recipe), fault=no_clock, num_ranks=1)
    (cache,) = (tmp_path / "caches").glob("*")
    strict = arguments_of(tmp_path, recipe, "teacher.precision_max_kl=1e-12", f"output_dir={tmp_path / 'strict'}")
    output = run(strict, fault=no_clock, num_ranks=1)
    assert "teacher.precision: auto: fp32 (bf16 is off by a KL of " in output
    assert kept(tmp_path / "strict")["precision"] == "fp32"
    assert "teacher_precision" not in inputs_of(tmp_path / "strict")
    (other,) = {*(tmp_path / "caches").glob("*")} - {cache}
    answers = [b"".join(file.read_bytes() for file in sorted(one.glob("*.bin"))) for one in (cache, other)]
    assert len(answers[0]) == len(answers[1]) > 0
    assert answers[0] != answers[1]


def test_a_run_that_began_without_it_goes_on_without_it(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, method="kd")
    arguments = ["run", str(recipe), *STEPS, "precision=fp32"]
    run(arguments, num_ranks=1)
    output = run([*arguments, "teacher.precision=auto"], num_ranks=1, fault=no_clock)
    assert "teacher.precision: auto: fp32 (the run began without it)" in output
    assert "distill: complete, skipped" in output
