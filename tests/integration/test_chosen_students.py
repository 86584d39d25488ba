"""Students whose parts are chosen by what the teacher makes of the calibration data: whole runs."""

from __future__ import annotations

import json
from pathlib import Path

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
