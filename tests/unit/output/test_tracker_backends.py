"""TensorBoard's event files and Trackio's database, read back by their own packages, over starts of one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.optional import NO_TRACKERS, TRACKERS
from tests.tiny import ROOT

START = """
import json, math, os, sys
from pathlib import Path
from ted_ds.config.tracking import Tracking
from ted_ds.output.trackers.backend import TrackedRun
from ted_ds.output.tracking import Tracker, backends_of

folder, to, calls = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config = {"seed": 1, "student": {"path": "x", "finetune": None}, "data": [{"weight": 0.5}], "deterministic": True}
run = TrackedRun(folder, run_id="0123abcd", name="tiny", project="ted_ds_tests", config=config)
tracker = Tracker(run, backends_of(Tracking(to=to)))
for name, *arguments in calls:
    os._exit(9) if name == "die" else getattr(tracker, name)(*arguments)
print(json.dumps([list(place) for place in tracker.places()]))
tracker.close()
"""
READ = """
import json, sqlite3, sys
from pathlib import Path
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

folder = Path(sys.argv[1])
runs = EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard")).Reload()
scalars = {
    f"{run}/{tag}": [[one.step, one.value] for one in runs.Scalars(run, tag)]
    for run, found in runs.Runs().items()
    for tag in found["scalars"]
}
content = HParamsPluginData.FromString(
    runs.SummaryMetadata(".", "_hparams_/session_start_info").plugin_data.content
).session_start_info
values = {name: getattr(value, value.WhichOneof("kind")) for name, value in content.hparams.items()}
logged = []
for file in (folder / "trackio").glob("*.db"):
    rows = sqlite3.connect(file).execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    logged += [[name, step, json.loads(metrics)] for name, step, metrics in rows]
print(json.dumps({"scalars": scalars, "hyperparameters": values, "group": content.group_name, "logged": logged}))
"""
BOTH = ["tensorboard", "trackio"]


def child(code: str, *arguments: Any, expected: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    assert TRACKERS.is_dir(), NO_TRACKERS
    left_out = ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=kept | {"PYTHONPATH": f"{ROOT}:{TRACKERS}"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done


def start(folder: Path, calls: list[Any], to: list[str] = BOTH, **more: Any) -> subprocess.CompletedProcess[str]:
    return child(START, folder, json.dumps(to), json.dumps(calls), **more)


def reports(*steps: int, of: str = "distill", offset: float = 0.0) -> list[Any]:
    return [["log", of, step, {"loss/total": step / 4 + offset}] for step in steps]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], dict[str, Any]]:
    """A run that dies in its second phase and goes on from step 2: its folder, places and numbers."""
    folder = tmp_path_factory.mktemp("trackers") / "run"
    first = [["rewind", "finetune_student", 0, 0], *reports(1, 2, 3, 4, of="finetune_student")]
    first += [["rewind", "distill", 0, 0], *reports(1, 2, 3), ["log", "distill", 2, {"eval/accuracy": 0.5}], ["die"]]
    start(folder, first, to=["tensorboard"], expected=9)
    start(folder, first[:-1], to=["trackio"])
    second = [["rewind", "distill", 2, 2], *reports(3, 4, offset=8.0), ["rewind", "evaluate", -1]]
    second += [["log", "evaluate", 0, {"loss": 2.0}], ["summarise", {"student_after/perplexity": 7.5}]]
    done = start(folder, second)
    assert done.stderr == ""
    return folder, json.loads(done.stdout), json.loads(child(READ, folder).stdout)


def test_a_resumed_runs_curves_in_tensorboard_are_those_of_one_run(resumed: Any) -> None:
    folder, places, found = resumed
    assert found["scalars"] == {
        "finetune_student/loss/total": [[1, 0.25], [2, 0.5], [3, 0.75], [4, 1.0]],  # a phase that is over stays
        "distill/loss/total": [[1, 0.25], [2, 0.5], [3, 8.75], [4, 9.0]],  # step 3 is the second start's alone
        "distill/eval/accuracy": [[2, 0.5]],
        "evaluate/loss": [[0, 2.0]],
        "./student_after/perplexity": [[0, 7.5]],
    }
    assert places[0] == ["TensorBoard", str(folder / "tensorboard")]
    assert len(list((folder / "tensorboard" / "distill").glob("*tfevents*"))) == 2


def test_the_recipe_is_in_tensorboard_by_its_paths(resumed: Any) -> None:
    _, _, found = resumed
    assert found["hyperparameters"] == {
        "seed": 1.0,
        "student.path": "x",
        "data": '[{"weight": 0.5}]',
        "deterministic": True,
    }
    assert found["group"] == "0123abcd"


def test_a_resumed_run_goes_on_in_the_same_trackio_run(resumed: Any) -> None:
    folder, places, found = resumed
    assert {name for name, *_ in found["logged"]} == {"tiny-0123abcd"}
    losses = [(step, one["distill/loss/total"]) for _, step, one in found["logged"] if "distill/loss/total" in one]
    assert losses == [(1, 0.25), (2, 0.5), (3, 0.75), (3, 8.75), (4, 9.0)]
    assert [(step, one) for _, step, one in found["logged"]][-2:] == [
        (0, {"evaluate/loss": 2.0}),
        (0, {"summary/student_after/perplexity": 7.5}),
    ]
    assert places[1] == ["Trackio", str(folder / "trackio")]


def test_trackio_keeps_to_the_folder_that_its_variable_names(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    done = start(tmp_path / "run", reports(1), to=["trackio"], TRACKIO_DIR=str(elsewhere))
    assert json.loads(done.stdout) == [["Trackio", str(elsewhere)]]
    assert [*elsewhere.glob("ted_ds_tests*.db")]
    assert not (tmp_path / "run" / "trackio").exists()


def test_numbers_that_are_none_are_taken(tmp_path: Path) -> None:
    start(tmp_path, [["log", "distill", 1, {"loss/total": float("nan"), "train/tokens": 7}]])
    found = json.loads(child(READ, tmp_path).stdout)
    assert str(found["scalars"]["distill/loss/total"]) == "[[1, nan]]"
    assert found["scalars"]["distill/train/tokens"] == [[1, 7.0]]


def test_a_backend_that_does_not_start_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()  # where a folder should be
    done = start(tmp_path, reports(1, 2))
    metrics = tmp_path / "metrics.jsonl"
    assert done.stderr.startswith("WARN TensorBoard does not start (")
    assert f"; the run goes on, numbers are in {metrics}\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(metrics.read_text().splitlines()) == 2
    assert [*(tmp_path / "trackio").glob("*.db")]


def test_a_backend_that_breaks_is_said_once_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "distill").touch()  # the phase has nowhere to write
    done = start(tmp_path, [*reports(1, 2), ["summarise", {"student_after/perplexity": 7.5}]])
    metrics = tmp_path / "metrics.jsonl"
    assert done.stderr.startswith("WARN TensorBoard no longer answers (")
    assert done.stderr.endswith(f"; the run goes on, all numbers are in {metrics}\n")
    assert done.stderr.count("\n") == 1
    assert len(metrics.read_text().splitlines()) == 2


def test_a_database_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "trackio").touch()  # where a folder should be
    done = start(tmp_path, reports(1, 2), to=["trackio"])
    assert done.stderr.count("this batch could not be persisted") == 1  # in Trackio's own words
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
