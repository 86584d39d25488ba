"""Where the models of a run are, now that its folder was moved, or is asked for from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import DataError
from ted_ds.output.phase_folder import model_identity
from ted_ds.reports.places import Places
from ted_ds.reports.reading import read_run_record
from tests.tiny import write_model


def run_in(folder: Path, *, scored: str | None = None, starts: Sequence[dict[str, Any]] = ()) -> Places:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc"}))
    (folder / "starts.jsonl").write_text("".join(json.dumps({"ranks": 1, **one}) + "\n" for one in starts))
    if scored is not None:
        (folder / "evaluate").mkdir(exist_ok=True)
        inputs = {"models": {"student after": {"path": scored}}}
        (folder / "evaluate/phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    return Places(read_run_record(folder))


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("output_dir", "recorded", "within"),
    [
        ("runs/x", "runs/x/distill/model", "distill/model"),
        ("runs/x", "/start/runs/x/distill/model", "distill/model"),
        ("/start/runs/x", "runs/x/distill/model", "distill/model"),
        ("./runs/../runs/x", "runs/x/distill/model", "distill/model"),
        (".", "distill/model", "distill/model"),
        (".", "../teacher", None),
        ("runs/x", "runs/x2/distill/model", None),
        ("runs/x", "runs/x/../teacher", None),
        ("runs/x", "/elsewhere/runs/x/distill/model", None),
    ],
)
def test_what_is_below_the_output_dir_is_in_the_run_wherever_that_is(tmp_path, output_dir, recorded, within):
    places = run_in(tmp_path / "moved", starts=[{"folder": "/start", "output_dir": output_dir}])
    assert places.in_run(recorded) == (None if within is None else Path(within))


def test_a_run_of_before_is_told_by_its_student(tmp_path):
    places = run_in(tmp_path / "moved", scored="runs/x/distill/model")
    assert places.in_run("runs/x/cut_student/model") == Path("cut_student/model")
    assert places.in_run("runs/y/cut_student/model") is None
    assert places.in_run(str(tmp_path / "moved/export")) == Path("export"), "an absolute path that is in it"


def test_a_run_that_was_started_from_two_folders_knows_both(tmp_path):
    starts = [{"folder": "/first", "output_dir": "a"}, {"folder": "/second", "output_dir": "b/a"}]
    places = run_in(tmp_path / "moved", starts=starts)
    assert [places.in_run(f"{one}/distill/model") for one in ("a", "b/a")] == [Path("distill/model")] * 2


def test_what_is_elsewhere_is_looked_for_where_the_run_was_started(tmp_path, monkeypatch):
    start, here = tmp_path / "start", tmp_path / "here"
    teacher = model_in(start / "teachers/big")
    model_in(here / "teachers/big")
    monkeypatch.chdir(here)
    places = run_in(tmp_path / "moved", starts=[{"folder": str(start), "output_dir": "runs/x"}])
    assert places.model("teacher", {"path": "teachers/big"}) == teacher
    assert places.model("teacher", {"path": str(teacher)}) == teacher
    with pytest.raises(DataError) as caught:
        places.model("teacher", {"path": "teachers/small"}, or_else=", or go")
    assert str(caught.value) == (
        f"{tmp_path / 'moved'}: its teacher was at {start / 'teachers/small'}, and is no more; put it back, or go"
    )


@pytest.mark.parametrize("starts", [[], [{"folder": "/not/here", "output_dir": "runs/x"}]], ids=["unknown", "gone"])
def test_where_nobody_knows_the_start_the_same_model_is_taken_from_here_and_no_other(tmp_path, monkeypatch, starts):
    identity = model_identity(write_model(tmp_path / "teacher", "llama", blocks=1, seed=1))
    other = model_identity(write_model(tmp_path / "other", "llama", blocks=1, seed=2))
    monkeypatch.chdir(tmp_path)
    places = run_in(tmp_path / "run", scored="runs/x/distill/model", starts=starts)
    assert places.model("teacher", {**identity, "path": "teacher"}) == Path("teacher")
    with pytest.raises(DataError, match="its teacher was at teacher; from here that is another model; start this in"):
        places.model("teacher", {**other, "path": "teacher"})


def test_runs_of_a_study_find_what_was_moved_with_them(tmp_path, monkeypatch):
    model_in(tmp_path / "old/teachers/ab/finetune_teacher/model")
    monkeypatch.chdir(tmp_path)
    recorded = {"path": "old/teachers/ab/finetune_teacher/model"}
    places = run_in(tmp_path / "new/runs/kd/seed-1", scored="old/runs/kd/seed-1/distill/model")
    assert places.model("teacher", recorded) == Path(recorded["path"]), "the study was copied without it"
    moved = model_in(tmp_path / "new/teachers/ab/finetune_teacher/model")
    assert places.model("teacher", recorded) == moved
    alone = run_in(tmp_path / "alone", scored="old/runs/kd/seed-1/distill/model")
    assert alone.model("teacher", recorded) == Path(recorded["path"])
