"""The runs of a study: what each is started with, when it is complete, and which trial is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.launching.processes import Process
from ted_ds.output.output_lock import LOCK_FILE, Owner, living_owner
from ted_ds.planning.study_plan import StudyPlan, plan_study
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.study import runs as runs_module
from ted_ds.verbs.study.runs import Runs, StudyRun
from ted_ds.verbs.study.search import SearchRounds, Tried, at_an_edge
from tests.tiny import ROOT, write_labelled, write_recipe, write_run

PLAN = {"max_steps": 8, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}
GRID = {"distill.learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]}


def study_of(folder: Path, **changes: Any) -> tuple[Path, StudyPlan]:
    path = write_run(folder, kind="sequence_classification")
    recipe = {**yaml.safe_load(path.read_text()), **changes}
    recipe["data"]["test"] = [{"path": str(write_labelled(folder / "test.jsonl", 20, seed=4))}]
    recipe["distill"] |= PLAN
    write_recipe(path, recipe)
    return path, plan_study(str(path), ["seed=4"], kind_of)


def runs_of(path: Path, plan: StudyPlan) -> Runs:
    return Runs(plan, str(path), ["seed=4"])


def finish(run: StudyRun, **scores: float) -> None:
    """Leave what a run leaves, as far as a study looks at it."""
    of_phase = run.folder / ("evaluate" if run.verb == "run" else "finetune_teacher")
    (of_phase / "outcomes").mkdir(parents=True)
    (of_phase / "phase.json").write_text(json.dumps({"inputs": {}, "files": {}, "result": {}, "seconds": 1.5}))
    (of_phase / "evaluation.json").write_text(json.dumps({"student after": scores}))
    about = {"headline": "accuracy", "higher_is_better": True}
    (of_phase / "outcomes" / "student_after.json").write_text(json.dumps(about))
    run.mark_complete()


def test_runs_have_the_words_of_the_study_then_the_arms_then_their_own(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path, study={"arms": {"sft": None, "own": {"student.heal": {}}}, "seeds": 2})
    runs = runs_of(path, plan)
    assert [run.name for run in runs.of_arms()] == ["sft.seed-4", "own.seed-4", "sft.seed-5", "own.seed-5"]
    assert runs.teachers() == []
    words = [*runs.job(runs.of_arms()[3]).command()]
    assert words[:6] == [sys.executable, "-m", "ted_ds", "run", str(path), "seed=4"]
    output = tmp_path / "run"
    assert words[6:] == [
        "student.heal={}",
        'name="tiny.own.5"',
        "seed=5",
        f'output_dir="{output / "runs" / "own" / "seed-5"}"',
        f'shared_phases="{output / "phases"}"',
        "study=null",
        "evaluation.outcomes=true",
        'evaluation.models="student"',
    ]
    of_first = [*runs.job(runs.of_arms()[0]).command()]
    assert 'evaluation.models="all"' in of_first, "the teacher is scored once"


def test_a_teacher_is_trained_once_for_all_arms_that_have_the_same(tmp_path: Path) -> None:
    other = {"teacher.finetune.max_steps": 9}
    arms = {"sft": None, "kd": None, "more": {"distill.method": "kd", **other}}
    path, plan = study_of(
        tmp_path,
        study={"arms": arms, "seeds": 2},
        teacher={"path": str(tmp_path / "teacher"), "finetune": PLAN, "dropout": {"hidden": 0.1}},
    )
    runs = runs_of(path, plan)
    of_two, of_one = runs.teachers()
    assert of_two.verb == of_one.verb == "finetune"
    assert of_two.changes["seed"] == 4
    sft, kd, more, sft_again, *_ = runs.of_arms()
    assert sft.needs == kd.needs == sft_again.needs == (of_two.name,)
    assert more.needs == (of_one.name,)
    for run in (sft, kd, sft_again):
        assert run.changes["teacher.path"] == str(of_two.folder / "finetune_teacher" / "model")
        assert run.changes["teacher.finetune"] is None
        assert run.changes["teacher.dropout"] == {}
    assert [run.changes["evaluation.models"] for run in (sft, kd, more)] == ["all", "student", "all"]


def test_a_run_is_complete_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path)
    run = runs_of(path, plan).of_arms()[0]
    assert not run.is_complete()
    finish(run, accuracy=0.5)
    assert run.is_complete()
    assert run.seconds() == {"evaluate": 1.5}
    assert not replace(run, changes={**run.changes, "distill.kl_weight": 2}).is_complete()
    assert not replace(run, recipe=run.recipe.model_copy(update={"precision": "bf16"})).is_complete()
    (run.folder / "evaluate" / "phase.json").unlink()
    assert not run.is_complete()


def test_a_run_whose_files_were_written_anew_is_to_be_looked_at(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path)
    run = runs_of(path, plan).of_arms()[0]
    finish(run, accuracy=0.5)
    for file in (tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "teacher" / "config.json"):
        content = file.read_bytes()
        assert run.is_complete()
        file.write_bytes(content)
        runs_module._LISTED.clear()  # as another start would have it
        assert not run.is_complete(), file.name
        run.mark_complete()


def test_other_arms_and_seeds_leave_what_was_scored_as_it_is(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path, study={"seeds": 2})
    runs = runs_of(path, plan)
    for run in runs.of_arms():
        finish(run, accuracy=0.5)
        if run.changes["evaluation.models"] == "all":
            (run.folder / "evaluate" / "evaluation.json").write_text(json.dumps({"student after": {}, "teacher": {}}))
    kinds = {"seeds": ["seed=4", "study.seeds=[9,4,5]"], "arms": ["seed=4", "study.only=[kd,lwd]", "study.seeds=2"]}
    for what, overrides in kinds.items():
        other = plan_study(str(path), overrides, kind_of)
        again = Runs(other, str(path), ["seed=4"])
        old = [run for run in again.of_arms() if not run.name.endswith("seed-9")]
        assert all(run.is_complete() for run in old), what
    teacher = runs.scorer_of_teacher(plan.arms["kd"])
    with_one_more = Runs(plan_study(str(path), kinds["seeds"], kind_of), str(path), ["seed=4"])
    assert with_one_more.scorer_of_teacher(plan.arms["kd"]).folder == teacher.folder


def test_a_teacher_stays_that_of_its_seed(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path, teacher={"path": str(tmp_path / "teacher"), "finetune": PLAN})
    (teacher,) = runs_of(path, plan).teachers()
    finish(teacher)
    other = plan_study(str(path), ["seed=4", "study.seeds=[2,4,5]"], kind_of)
    (again,) = Runs(other, str(path), ["seed=4"]).teachers()
    assert again.is_complete()
    assert again.changes["seed"] == 4


def test_each_run_uploads_to_a_place_of_its_own(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path, checkpoint={"upload": {"to": "file:///mnt/study"}})
    places = [run.changes["checkpoint.upload.to"] for run in runs_of(path, plan).of_arms()]
    assert places[0].startswith("file:///mnt/study/runs/")
    assert len({*places}) == len(places) > 1
    path, plan = study_of(tmp_path)
    assert all("checkpoint.upload.to" not in run.changes for run in runs_of(path, plan).of_arms())


def test_the_teachers_cache_is_shared(tmp_path: Path) -> None:
    cached = {"path": str(tmp_path / "teacher"), "cache": {"max_gib": 1}}
    path, plan = study_of(tmp_path, teacher=cached)
    by_arm = {run.arm: run.changes for run in runs_of(path, plan).of_arms()}
    assert by_arm["kd"]["teacher.cache.dir"] == str(tmp_path / "run" / "teacher_cache")
    assert "teacher.cache.dir" not in by_arm["sft"]
    scored = [run.changes["evaluation.models"] for run in runs_of(path, plan).of_arms()]
    assert scored.count("all") == 1, "arms without a cache have the same teacher"


def test_what_a_killed_study_left_behind_is_waited_for(tmp_path: Path) -> None:
    path, plan = study_of(tmp_path)
    runs = runs_of(path, plan)
    run = runs.of_arms()[0]
    job = runs.job(run)
    assert job.waits_for() is None
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        run.folder.mkdir(parents=True)
        began = Process.own().began
        import psutil

        process = replace(Process.own(), number=other.pid, began=psutil.Process(other.pid).create_time())
        (run.folder / LOCK_FILE).write_text(json.dumps(asdict(Owner("token", began, process))))
        reason = job.waits_for()
        assert reason is not None
        assert f":{other.pid} since " in reason
        assert reason.endswith(", which is at it")
    finally:
        other.kill()
        other.communicate()
    assert living_owner(run.folder) is None
    assert job.waits_for() is None


def test_a_study_is_not_for_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = study_of(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    capsys.readouterr()
    assert main(["study", str(path)]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "a study starts the ranks of its runs itself (study.ranks): start it without a launcher"
    ]
    assert not (tmp_path / "run").exists()
    assert os.environ["WORLD_SIZE"] == "2"


# --- search -----------------------------------------------------------------------------------------------------------


def search_of(folder: Path, *, halvings: int) -> tuple[StudyPlan, Runs]:
    search = {"trials": 4, "halvings": halvings, "grids": {"sft": GRID, "kd": GRID}}
    path, plan = study_of(folder, study={"arms": {"sft": None, "kd": None}, "search": search})
    return plan, runs_of(path, plan)


def test_trials_are_scored_on_held_out_data_alone(tmp_path: Path) -> None:
    plan, runs = search_of(tmp_path, halvings=1)
    run = runs.of_trial(plan.trials["kd"][2], 1)
    assert run.name == "kd.trial-2.halved-1"
    assert run.folder.parents[1] == tmp_path / "run" / "search" / "kd"
    assert len({runs.of_trial(trial, 1).folder for trial in plan.trials["kd"]}) == len(plan.trials["kd"])
    assert run.changes["data.test"] is None
    assert run.changes["distill.max_steps"] == 4
    assert run.changes["distill.learning_rate"] == 3e-4
    assert run.changes["seed"] == 4
    assert run.changes["evaluation.models"] == "student"


def test_the_better_half_goes_on_and_the_best_is_taken(tmp_path: Path) -> None:
    plan, runs = search_of(tmp_path, halvings=1)
    rounds = SearchRounds(plan, runs)
    scores = {"sft": [[0.1, 0.4, 0.3, 0.2], [0.5, 0.6]], "kd": [[0.2, 0.2, 0.1, 0.2], [0.7, 0.7]]}
    for index, round_of_runs in enumerate(rounds):
        by_arm = {arm: [run for run in round_of_runs if run.arm == arm] for arm in scores}
        for arm, of_arm in by_arm.items():
            for run, score in zip(of_arm, scores[arm][index], strict=True):
                finish(run, accuracy=score)
        rounds.judge()
    assert {arm: trial.number for arm, trial in rounds.chosen.items()} == {"sft": 2, "kd": 0}, "of equal ones the first"
    tried = [(one.number, one.halved, one.score) for one in rounds.tried["sft"]]
    assert tried == [(0, 1, 0.1), (1, 1, 0.4), (2, 1, 0.3), (3, 1, 0.2), (1, 0, 0.5), (2, 0, 0.6)]


def test_what_cannot_be_trained_is_not_taken(tmp_path: Path) -> None:
    plan, runs = search_of(tmp_path, halvings=0)
    rounds = SearchRounds(plan, runs)
    for round_of_runs in rounds:
        finish(round_of_runs[1], accuracy=0.2)
        finish(round_of_runs[2], accuracy=float("nan"))
        rounds.judge()
    assert {arm: trial.number for arm, trial in rounds.chosen.items()} == {"sft": 1}
    assert [one.score for one in rounds.tried["sft"]] == [None, 0.2, None, None]


def test_what_is_best_at_the_edge_of_what_was_tried_is_said() -> None:
    rate, weight = "distill.learning_rate", "distill.kl_weight"
    tried = [Tried(number, {rate: value, weight: 2}, 0, 0.5) for number, value in enumerate((3e-4, 1e-4, 2e-4))]
    (line,) = at_an_edge(tried, {rate: 3e-4, weight: 2, "distill.method": "kd"})
    assert line == "distill.learning_rate=0.0003 is the highest of 3 that were tried, and the best may lie beyond"
    assert "is the lowest of 3" in next(at_an_edge(tried, {rate: 1e-4}))
    assert [*at_an_edge(tried, {rate: 2e-4})] == []
    assert [*at_an_edge(tried[:2], {rate: 3e-4})] == [], "of two each is at an edge"
    schedules = [Tried(number, {weight: [[0, 1.0], [number, 2.0]]}, 0, 0.5) for number in range(1, 4)]
    assert [*at_an_edge(schedules, {weight: [[0, 1.0], [3, 2.0]]})] == [], "which have no order"


def words_of_line(file: Path, number: int) -> list[str]:
    """What ``launchers/slurm.sbatch`` makes of a line."""
    (reading,) = [line for line in (ROOT / "launchers" / "slurm.sbatch").read_text().splitlines() if "read -ra" in line]
    script = f"{reading}\nprintf '%s\\0' \"${{changes[@]}}\""
    surroundings = {**os.environ, "TED_DS_STUDY": str(file), "SLURM_ARRAY_TASK_ID": str(number)}
    done = subprocess.run(["bash", "-c", script], env=surroundings, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_line_of_an_array_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"sft": None, "own": {"student.heal": {"strengths": [0.1, 0.2]}, "student.finetune": PLAN}}
    path, plan = study_of(tmp_path, study={"arms": arms, "seeds": 2})
    recipe = yaml.safe_load(path.read_text())
    recipe["teacher"]["finetune"] = PLAN
    write_recipe(path, recipe)
    plan = plan_study(str(path), ["seed=4"], kind_of)
    runs, lines = runs_of(path, plan), tmp_path / "lines"
    finish(runs.of_arms()[1], **{"accuracy": 0.5})
    assert main(["study", str(path), "seed=4", "--array", str(lines)]) == 0
    script = "launchers/slurm.sbatch"
    assert capsys.readouterr().out.splitlines() == [
        f"TED_DS_STUDY={lines}/teachers.txt sbatch --array=1-1 {script} finetune {path} seed=4",
        f"TED_DS_STUDY={lines}/arms.txt sbatch --array=1-3 --dependency=afterok:JOB {script} run {path} seed=4",
        f"ted-ds study {path} seed=4",
    ]
    wanted = {"teachers.txt": runs.teachers(), "arms.txt": [runs.of_arms()[index] for index in (0, 2, 3)]}
    for name, of_file in wanted.items():
        assert len((lines / name).read_text().splitlines()) == len(of_file)
        for number, run in enumerate(of_file, start=1):
            _, _, _, *words = runs.job(run).command()[2:]
            found = words_of_line(lines / name, number)
            assert load_recipe(path, ["seed=4", *found]) == load_recipe(path, words)


def test_what_cannot_be_an_array_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = study_of(
        tmp_path, study={"arms": {"sft": None, "kd": None}, "search": {"trials": 2, "grids": {"sft": GRID, "kd": GRID}}}
    )
    assert main(["study", str(path), "--array", str(tmp_path / "lines")]) == 2
    assert "study.search: settings are chosen in rounds" in capsys.readouterr().err
    path, _ = study_of(tmp_path, study={"arms": {"sft": {"tracking.project": "a project"}, "kd": None}})
    assert main(["study", str(path), "--array", str(tmp_path / "lines")]) == 2
    assert 'tracking.project="a project": a space cannot stand' in capsys.readouterr().err
    assert not (tmp_path / "lines").exists()
