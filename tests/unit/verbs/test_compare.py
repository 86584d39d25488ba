"""``ted-ds compare``: what differs between two runs' files, and nothing else."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from ted_ds.cli import main
from tests.terminals import on_terminal
from tests.tiny import ROOT

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
        "speeds": {},
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


def write_moved(folder: Path, recorded_as: str, *, student: str, seed: int, speed: float) -> Path:
    """A run that knew itself by a relative path, with the model that it distilled and the teacher that it scored."""
    (folder / "evaluate").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc"}))
    (folder / "starts.jsonl").write_text(json.dumps({"folder": "/start", "output_dir": recorded_as}) + "\n")
    models = {
        "teacher": {"path": f"{recorded_as}/../teacher", "sha256": "a" * 64},
        "student after": {"path": f"{recorded_as}/distill/model", "sha256": student * 64},
    }
    inputs = {"task": TASK, "models": models, "seed": seed}
    (folder / "evaluate/phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    scores = {"student after": {"accuracy": 0.5, "perf/tokens_per_s": speed}}
    (folder / "evaluate/evaluation.json").write_text(json.dumps(scores))
    return folder


def test_from_anywhere_no_place_is_a_difference_and_neither_is_a_speed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = write_moved(tmp_path / "one/seed-1", "runs/a", student="b", seed=1, speed=10.0)
    other = write_moved(tmp_path / "other/seed-1", "b", student="c", seed=2, speed=20.0)
    assert main(["compare", str(one), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    hashes = {"evaluate.models.student after.sha256": ["b" * 64, "c" * 64]}
    assert found["settings"] == {**hashes, "evaluate.seed": [1, 2]}
    assert found["results"] == {}
    assert found["speeds"] == {"student after: perf/tokens_per_s": [10.0, 20.0]}


def test_in_60_columns_hashes_are_short_and_runs_are_called_by_what_tells_them_apart(tmp_path):
    one = write_moved(tmp_path / "one/seed-1", "runs/a", student="b", seed=1, speed=10.0)
    other = write_moved(tmp_path / "other/seed-1", "b", student="c", seed=1, speed=20.0)
    command = [sys.executable, "-m", "ted_ds", "compare", str(one), str(other)]
    shown = on_terminal(command, {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}, columns=60)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n").splitlines()
    assert max(map(len, lines)) <= 60
    cells = [[cell.strip() for cell in line.strip("┃│").split(line[0])] for line in lines if line[:1] in ("┃", "│")]
    assert cells[0] == ["setting", "one/seed-1", "other/seed-1"]
    assert [f"{'b' * 12}…", f"{'c' * 12}…"] in [row[1:] for row in cells]
    assert "Results that differ: none" in lines
    assert ["10", "20", "+10"] in [row[1:] for row in cells]
