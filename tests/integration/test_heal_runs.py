"""Whole runs with a student that is healed: what they leave, and that they go on from wherever they were stopped."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import yaml
from safetensors.torch import load_file

from tests.distributed.test_doctor import counting_texts, train_plainly
from tests.faults import signal_at
from tests.layouts import STOPPED
from tests.runs import differences, run, traces
from tests.tiny import recipe_dict, write_model, write_recipe, write_rows

KILLED = -signal.SIGKILL
BLOCKS = [0, 2, 5]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A teacher of six blocks that knows its texts, of which three become the student."""
    folder = tmp_path_factory.mktemp("healed")
    write_model(folder / "teacher", "llama", blocks=6, seed=1)
    train_plainly(folder / "teacher", counting_texts())
    write_rows(folder / "train.jsonl", [{"text": text} for text in counting_texts() * 4])
    values = recipe_dict(folder, method="kd") | {"preflight": "refuse"}
    values["student"] = {
        "from_teacher": {"blocks": BLOCKS},
        "calibration": {"tokens": 1000, "heldout_tokens": 200},
        "heal": {},
    }
    values["evaluation"]["max_examples"] = 32
    return write_recipe(folder / "recipe.yaml", values)


def test_a_run_heals_its_student_and_goes_on_from_any_block(recipe):
    arguments = ["run", str(recipe)]
    output = run(arguments)
    folder = recipe.parent / "run"
    whole = traces(folder)
    scores = {name: one["loss"] for name, one in whole["scores"].items()}
    assert [*scores] == ["teacher", "student before", "student healed", "student after"]
    assert scores["student healed"] < 0.8 * scores["student before"]
    result = json.loads((folder / "heal_student" / "phase.json").read_text())["result"]
    assert result["scores"]["after"]["loss"] == pytest.approx(scores["student healed"])
    assert [one["teacher_layer"] for one in result["blocks"]] == [2, 5, 6]
    assert all(f"block {number} to the teacher's layer {layer}" in output for number, layer in enumerate((2, 5, 6)))
    reports = [one for one in whole["reports"] if one["phase"] == "heal_student"]
    assert sum("heal/relative_error_after" in one for one in reports) == len(BLOCKS)
    assert [one["eval/loss"] for one in reports if "eval/loss" in one] == [
        result["scores"][when]["loss"] for when in ("before", "after")
    ]
    untouched = load_file(folder / "cut_student" / "model" / "model.safetensors")
    healed = load_file(folder / "heal_student" / "model" / "model.safetensors")
    assert {name for name in healed if not healed[name].equal(untouched[name])} == {
        f"model.layers.{number}.mlp.down_proj.weight" for number in range(len(BLOCKS))
    }

    shutil.rmtree(folder)
    # a block takes three ways up: the teacher's, the student's, and that of the healed student
    stopped = run(arguments, codes=STOPPED, fault=signal_at, fault_arguments=("heal", 5, signal.SIGTERM))
    assert "stopped on SIGTERM (rank 0) in heal_student, behind block 0 of 3. What is healed is in " in stopped
    run(arguments, codes=None, fault=signal_at, fault_arguments=("heal", 6, signal.SIGKILL))
    assert (folder / "checkpoints" / "heal_student" / "step_00000002").is_dir()
    damaged = folder / "checkpoints" / "heal_student" / "step_00000002" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    output = run(arguments)
    assert "it is healed again, with the blocks behind it" in output
    assert "going on behind block 0 of 3" in output
    assert differences(whole, traces(folder)) == []
    assert not (folder / "checkpoints" / "heal_student").exists()

    refused = run([*arguments, "student.heal.strengths=[0.5]"], codes=2, num_ranks=1)
    assert "heal_student: was completed with other settings: heal.strengths" in refused


def test_checkpoints_of_healing_with_other_settings_are_refused(recipe):
    other = recipe.with_name("other.yaml")
    values = yaml.safe_load(recipe.read_text()) | {"output_dir": str(recipe.parent / "other")}
    arguments = ["run", str(write_recipe(other, values))]
    run(arguments, codes=STOPPED, num_ranks=1, fault=signal_at, fault_arguments=("heal", 5, signal.SIGTERM))
    output = run([*arguments, "student.calibration.tokens=900"], codes=2, num_ranks=1)
    assert "was taken with other settings: calibration.tokens was 1000, now 900" in output
