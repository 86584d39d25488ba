"""``ted-ds compare``: what differs between two runs' files, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ted_ds.cli import main

TASK = {"kind": "sequence_classification", "labels": ["a", "b"], "max_length": 16, "headline": None}
PLAN = {"max_steps": 2, "power": None, "betas": [0.9, 0.999]}


def write_run(folder: Path, *, changes: dict[str, Any], scores: dict[str, float] | None, phases: str) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run_id": "abc"}))
    model = {"path": str(folder / "cut_student" / "model"), "sha256": "0123456789abcdef"}
    for phase in phases.split():
        (folder / phase).mkdir()
        inputs = {"plan": {**PLAN, **changes}, "model": model, "task": TASK, "models": {}}
        (folder / phase / "phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    if scores is not None:
        (folder / "evaluate" / "evaluation.json").write_text(json.dumps({"teacher": scores}))
    return folder


def two_runs(tmp_path: Path) -> list[str]:
    phases = "finetune_student distill evaluate"
    one = write_run(tmp_path / "one", changes={}, scores={"accuracy": 0.5, "loss": 0.7}, phases=f"cut_student {phases}")
    changes = {"max_steps": 3, "power": 1.0}
    other = write_run(tmp_path / "other", changes=changes, scores={"accuracy": 0.75, "loss": 0.7}, phases=phases)
    return [str(one), str(other)]


def test_what_differs_is_a_row_and_what_is_alike_is_none(tmp_path, capsys):
    one, other = two_runs(tmp_path)
    assert main(["compare", one, other]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    of_one = [row for row in rows if row[0]]
    assert [row[0] for row in of_one] == ["phases", "*.plan.max_steps", "*.plan.power", "teacher: accuracy"]
    assert of_one[1:] == [
        ["*.plan.max_steps", "2", "3"],
        ["*.plan.power", "null", "1.0"],
        ["teacher: accuracy", "0.5000", "0.7500", "+0.25"],
    ]
    assert max(map(len, lines)) <= 120


def test_programs_get_json(tmp_path, capsys):
    one, other = two_runs(tmp_path)
    assert main(["compare", one, other, "--json"]) == 0
    phases = ["finetune_student", "distill", "evaluate"]
    assert json.loads(capsys.readouterr().out) == {
        "runs": [one, other],
        "phases": [["cut_student", *phases], phases],
        "settings": {
            f"{phase}.plan.{key}": pair
            for phase in phases
            for key, pair in (("max_steps", [2, 3]), ("power", [None, 1.0]))
        },
        "results": {"teacher: accuracy": [0.5, 0.75]},
    }


def test_runs_that_are_alike_or_not_scored_are_said_to_be(tmp_path, capsys):
    one, _ = two_runs(tmp_path)
    new = write_run(tmp_path / "new", changes={}, scores=None, phases="distill")
    assert main(["compare", one, one]) == 0
    assert capsys.readouterr().out == "Settings that differ: none\nResults that differ: none\n"
    assert main(["compare", one, str(new)]) == 0
    assert f"\n{new}: its models are not scored yet\n" in capsys.readouterr().out


def test_a_folder_without_a_run_is_said(tmp_path, capsys):
    one, _ = two_runs(tmp_path)
    assert main(["compare", one, str(tmp_path)]) == 2
    assert f"{tmp_path}: no run began in this folder (it has no run.json)" in capsys.readouterr().err
