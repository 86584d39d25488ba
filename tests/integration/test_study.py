"""A whole study: shared phases, a failing arm, killed in the middle, resumed, the same table to the last digit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import TIMEOUT_S, Run
from tests.studies import fork_runs
from tests.tiny import write_labelled, write_recipe, write_run

ARMS = {
    "sft": None,
    "kd": None,
    "ted": {"student.heal": {}},
    "broken": {"distill.method": "sft", "distill.learning_rate": 1e30},
}
SEEDS = (5, 6)


def write_study(folder: Path) -> Path:
    """A tiny classification with a test set, and a teacher and students that are trained first."""
    path = write_run(folder, kind="sequence_classification")
    recipe = yaml.safe_load(path.read_text())
    write_labelled(folder / "test.jsonl", 40, seed=9)
    recipe["data"]["test"] = [{"path": str(folder / "test.jsonl")}]
    plan = {**recipe["filters"]["teacher"]}
    recipe["teacher"]["finetune"] = plan
    recipe["student"]["finetune"] = plan
    recipe["distill"]["max_steps"] = 6
    recipe["checkpoint"] = {"every_steps": 1}
    recipe["max_consecutive_skips"] = 0
    recipe["tracking"]["wandb"] = "disabled"
    recipe["study"] = {"arms": ARMS, "seeds": [*SEEDS], "at_once": 2}
    return write_recipe(path, recipe)


def study(recipe: Path, *arguments: str) -> Run:
    return Run(["study", str(recipe), *arguments], num_ranks=1, fault=fork_runs)


def table(folder: Path) -> dict[str, Any]:
    """All of a study but for seconds."""
    found = json.loads((folder / "run" / "study.json").read_text())
    for run in found["runs"].values():
        del run["seconds"]
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that went through at once: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    run = study(write_study(folder))
    assert run.wait() == [1], run.output()
    return folder, run.output()


def test_every_arm_is_compared_over_the_seeds_on_the_test_set(done: tuple[Path, str]) -> None:
    folder, output = done
    found = table(folder)
    assert [*found["parts"]] == ["test", "held-out"]
    part = found["parts"]["test"]
    assert (part["metric"], part["num_examples"], part["decides"]) == ("accuracy", 40, True)
    assert [*part["arms"]] == ["sft", "kd", "ted"]
    for name, arm in part["arms"].items():
        for seed in SEEDS:
            scores = folder / "run" / "runs" / name / f"seed-{seed}" / "evaluate" / "evaluation.json"
            score = json.loads(scores.read_text())["student after"]["test/accuracy"]
            assert arm["by_seed"][str(seed)] == pytest.approx(score, rel=1e-12)
    assert part["arms"]["sft"]["difference"] is None
    assert part["teacher"] is not None
    assert len(found["verdicts"]) == 2
    markdown = (folder / "run" / "study.md").read_text()
    for verdict in found["verdicts"]:
        assert verdict in markdown
        assert verdict in output


def test_the_arm_that_fails_is_named_with_its_log_and_stops_no_other(done: tuple[Path, str]) -> None:
    folder, output = done
    failed = table(folder)["failed"]
    assert [*failed] == [f"broken.seed-{seed}" for seed in SEEDS]
    log = folder / "run" / "logs" / "broken.seed-5.log"
    assert failed["broken.seed-5"] == f"exit code 2, see {log}"
    assert "not finite" in log.read_text()
    assert f"WARN broken.seed-5: exit code 2, see {log}:\n" in output


def test_what_runs_have_in_common_is_done_once(done: tuple[Path, str]) -> None:
    folder, _ = done
    phases = [one.name.rpartition("-")[0] for one in (folder / "run" / "phases").iterdir()]
    # one teacher and cut for all; a student fine-tuned with each seed, of the cut and of the healed one
    assert {name: phases.count(name) for name in sorted({*phases})} == {
        "cut_student": 1,
        "distill": 6,
        "filters_student": 2,
        "filters_teacher": 2,
        "finetune_student": 4,
        "finetune_teacher": 1,
        "heal_student": 2,
    }
    weights = {
        (
            folder / "run" / "runs" / arm / f"seed-{SEEDS[0]}" / "finetune_student" / "model" / "model.safetensors"
        ).read_bytes()
        for arm in ("sft", "kd")
    }
    assert len(weights) == 1, "arms begin with one student"


def test_killed_in_the_middle_and_started_again_it_has_the_same_table_to_the_last_digit(
    done: tuple[Path, str],
) -> None:
    folder, _ = done
    before = table(folder)
    output = folder / "run"
    for file in ("study.json", "study.md"):
        (output / file).unlink()
    last = output / "runs" / "ted" / f"seed-{SEEDS[1]}"
    shutil.rmtree(last)
    last.with_name(f"{last.name}.record.json").unlink()
    for place in (output / "phases").glob("distill-*"):
        shutil.rmtree(place)
    recipe = folder / "recipe.yaml"
    run = study(recipe)
    deadline = time.monotonic() + TIMEOUT_S
    checkpoints = last / "checkpoints" / "distill"
    while not list(checkpoints.glob("step*2")):
        assert time.monotonic() < deadline, run.output()
        assert run.processes[0].is_alive(), run.output()
        time.sleep(0.002)
    owner = json.loads((last / "owner.json").read_text())["process"]["number"]
    run.send(signal.SIGKILL)
    os.kill(owner, signal.SIGKILL)
    run.wait()
    assert not (output / "study.json").exists()
    again = study(recipe)
    assert again.wait() == [1], again.output()
    assert "6 of 8 runs: complete, skipped" not in again.output()
    assert "5 of 8 runs: complete, skipped" in again.output()
    log = (output / "logs" / f"ted.seed-{SEEDS[1]}.log").read_text()
    assert "going on after step" in log
    assert table(folder) == before


def test_a_setting_whose_trial_was_killed_is_not_taken_for_one_that_cannot_be_trained(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    recipe["teacher"].pop("finetune")
    recipe["student"].pop("finetune")
    grid = {"distill.learning_rate": [1e-3, 1e30]}
    recipe["study"] = {"arms": {"sft": None, "kd": None}, "seeds": [5], "search": {"trials": 2, "halvings": 0}}
    recipe["study"]["search"]["grids"] = {"sft": grid, "kd": grid}
    write_recipe(path, recipe)
    run = study(path)
    output, deadline = tmp_path / "run", time.monotonic() + TIMEOUT_S
    while not (found := list((output / "search" / "sft").glob("*/halved-0/checkpoints/distill/step*2"))):
        assert time.monotonic() < deadline, run.output()
        assert run.processes[0].is_alive(), run.output()
        time.sleep(0.002)
    os.kill(json.loads((found[0].parents[2] / "owner.json").read_text())["process"]["number"], signal.SIGKILL)
    assert run.wait() == [1], run.output()
    assert "sft: distill.learning_rate" not in run.output()
    failed = json.loads((output / "study.json").read_text())["failed"]
    assert failed["sft.trial-0.halved-0"].startswith("exit code -9, see ")
    assert "its arm has no setting" in failed["sft.seed-5"]
    assert "kd: distill.learning_rate=0.001 is taken" in run.output()
    again = study(path)
    assert again.wait() == [0], again.output()
    assert "sft: distill.learning_rate=0.001 is taken" in again.output()
    assert json.loads((output / "study.json").read_text())["failed"] == {}
