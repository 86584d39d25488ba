"""Whole runs with filters that are solved, stopped anywhere; and with filters that know less than a guess."""

from __future__ import annotations

import json
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.faults import signal_at
from tests.layouts import STOPPED, zero_stage
from tests.runs import Run, differences, run, traces
from tests.tiny import write_run

RIDGE = (
    "filters.initialisation=ridge",
    "filters.ridge.strengths=[1, 0.01]",
    "student.calibration.tokens=150",
    "student.calibration.heldout_tokens=30",
)


def result_of(folder, phase):
    return json.loads((folder / phase / "phase.json").read_text())["result"]


@pytest.mark.parametrize(
    ("kind", "stage"), [("causal_lm", 2), pytest.param("sequence_classification", 3, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_goes_on_with_the_filters_it_had(tmp_path, kind, stage):
    """Its teacher's filters stay as they are solved; its student's are learned on."""
    recipe = write_run(tmp_path, kind=kind)
    steps = ("filters.teacher.max_steps=0", "filters.student.max_steps=4")
    arguments = ["run", str(recipe), zero_stage(stage), *RIDGE, *steps, "checkpoint.every_steps=1"]
    output = run([*arguments, f"output_dir={tmp_path / 'whole'}"])
    solving = Run(arguments, fault=signal_at, fault_arguments=("evaluation", 3, signal.SIGTERM))
    assert solving.wait() == [STOPPED, STOPPED], solving.output()
    assert "in filters_teacher. It has no steps to save" in solving.output()
    learning = Run(arguments, fault=signal_at, fault_arguments=("step", 4, signal.SIGKILL, (1,)))
    assert learning.wait()[1] == -signal.SIGKILL
    again = run(arguments)
    assert "going on after step" in again
    assert "solved on" not in again
    assert differences(traces(tmp_path / "whole"), traces(tmp_path / "run")) == []
    for phase in ("filters_teacher", "filters_student"):
        assert result_of(tmp_path / "run", phase) == {
            **result_of(tmp_path / "whole", phase),
            **{name: value for name, value in result_of(tmp_path / "run", phase).items() if name.startswith("perf/")},
        }
    teacher, student = (result_of(tmp_path / "run", f"filters_{side}") for side in ("teacher", "student"))
    assert teacher["filters"]["teacher"] == {
        name: one["scores"] for name, one in teacher["solved"]["teacher"].items()
    }, "nothing was learned"
    assert {"layer_02", "layer_04"} == teacher["filters"]["teacher"].keys()
    own = teacher["filters"]["teacher"]["layer_04"]["loss"]
    scores = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text())
    assert own == pytest.approx(scores["teacher"]["loss"], rel=1e-5), "the identity, read as the model is"
    weights = load_file(tmp_path / "run" / "filters_teacher" / "filters.safetensors")
    torch.testing.assert_close(weights["filters.1.weight"], torch.eye(16), rtol=0, atol=1e-6)
    for name, one in student["solved"]["student"].items():
        assert one["error"] < one["error_before"], "the teacher's filters put out something else"
        before, after = one["scores"]["loss"], student["filters"]["student"][name]["loss"]
        assert before != after
        assert f"{name} {before:.4g} -> {after:.4g}" in output
    assert re.search(r"filters_teacher, layer_02: solved on \d+ \w+; relative error on \d+ others ", output)


def test_filters_below_guessing_are_not_taken_into_stage_two(tmp_path):
    recipe = write_run(tmp_path)
    learn = "max_steps: 2, global_batch_size: 4, micro_batch_size: 2"
    spoil = f"filters={{lm_head: new, both: {{{learn}, learning_rate: 3.0, gradient_clipping: 0}}}}"
    tuned = [f"teacher.finetune={{{learn}, learning_rate: 1.0e-3}}", "distill.max_steps=1"]
    scored = ["data.heldout_fraction=0.9", "evaluation.max_examples=64", "task.sequence_length=8"]
    arguments = ["run", str(recipe), spoil, *tuned, *scored]
    for _ in range(2):  # in the second start, Stage I is complete
        output = run([*arguments, "preflight=refuse"], codes=2)
        (message,) = re.findall(r"^.*filters of .*$", output, flags=re.MULTILINE)
        assert "below guessing; train them for longer, or solve them (filters.initialisation: ridge). See" in message
        assert message.endswith("See ted-ds doctor; preflight: warn trains all the same")
        assert (tmp_path / "run" / "filters_both" / "phase.json").exists(), "nothing is lost"
        assert not (tmp_path / "run" / "distill").exists()
    run([*arguments, "preflight=warn"])
    assert (tmp_path / "run" / "export").exists()
