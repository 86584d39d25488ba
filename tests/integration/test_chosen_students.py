"""Students whose parts are chosen by what the teacher makes of the calibration data: whole runs."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.runs import run
from tests.tiny import write_run

CALIBRATION = "student.calibration={tokens: 200, heldout_tokens: 64}"


def test_blocks_are_chosen_kept_and_told(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path, method="kd"))
    given = ["run", recipe, CALIBRATION, "student.from_teacher={num_blocks: 2, choose: influence}"]
    output = run(given)
    manifest = json.loads((tmp_path / "run" / "cut_student" / "phase.json").read_text())
    blocks, choice = manifest["result"]["blocks"], manifest["result"]["choice"]
    influence = choice["influence"]
    assert blocks == sorted(sorted(range(4), key=lambda block: -influence[block])[:2])
    assert (choice["by"], choice["choices"]["spread"]) == ("influence", [0, 3])
    assert f"blocks of the teacher that become the student, by influence: {blocks[0]} {blocks[1]}" in output
    assert {*choice["heldout_loss"]} == {"all", "spread", "ends", "influence"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").config.num_hidden_layers == 2
    card = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    assert f"The student began as blocks {blocks} of the teacher." in card
    assert "cut_student: complete, skipped" in run(given)
    refused = run([*given, "student.calibration.tokens=210"], codes=2)
    assert "cut_student: was completed with other settings: calibration.tokens was 200, now 210. " in refused


def test_a_narrower_student_goes_through_all_phases(tmp_path: Path) -> None:
    recipe = str(write_run(tmp_path))
    width = (
        "{num_blocks: 2, choose: ends, hidden_size: 10, intermediate_size: 20, num_heads: 1, num_key_value_heads: 1}"
    )
    given = ["run", recipe, CALIBRATION, f"student.from_teacher={width}"]
    output = run(given)
    assert "20 of 32 neurons of each block become the student's, with " in output
    assert "10 of 16 channels become the student's, with " in output
    assert "1 of 2 heads of each block become the student's, with " in output
    cut = tmp_path / "run" / "cut_student"
    kept = load_file(cut / "units.safetensors")
    assert json.loads((cut / "phase.json").read_text())["result"] == {"blocks": [0, 3]}
    teacher, student = (load_file(one / "model.safetensors") for one in (tmp_path / "teacher", cut / "model"))
    rows, columns = kept["kept.inner.3"], kept["kept.hidden"]
    up = "model.layers.{}.mlp.up_proj.weight"
    assert student[up.format(1)].equal(teacher[up.format(3)][rows][:, columns])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").config.hidden_size == 10
    refused = run([*given, "student.from_teacher.intermediate_size=21"], codes=2)
    assert "cut_student: was completed with other settings: intermediate_size was 20, now 21. " in refused
