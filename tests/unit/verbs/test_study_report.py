"""What a study leaves and shows: tables, verdicts of the part that decides, and what is not complete."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ted_ds.errors import CheckpointError
from ted_ds.output.results import outcomes_file
from ted_ds.planning.study_plan import StudyPlan, plan_study
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.study.report import Conducted, as_json, tables_of, verdicts_of, write
from ted_ds.verbs.study.runs import Runs, StudyRun
from ted_ds.verbs.study.scores import compare
from ted_ds.verbs.study.search import Tried
from tests.tiny import write_run

NUM_EXAMPLES = 300
SKILL = {"teacher": 0.95, "sft": 0.6, "kd": 0.85, "lwd": 0.6, "ted": 0.61}
"""Of each model, the share of examples that it gets right: the easiest ones, a few of them by seed."""


def outcomes(name: str, seed: int) -> dict[str, Any]:
    order = 6301 if name == "ted" else 7919  # which of them are easy to whom
    right = [int((index * order + 31 * seed) % 1000 < 1000 * SKILL[name]) for index in range(NUM_EXAMPLES)]
    return {
        "headline": "accuracy",
        "higher_is_better": True,
        "ids": [f"id{index}" for index in range(NUM_EXAMPLES)],
        "metrics": {"accuracy": ["ratio", "right", "one"]},
        "columns": {"right": right},
    }


def leave(run: StudyRun, model: str, found: dict[str, Any]) -> None:
    folder = run.folder / "evaluate"
    (folder / "outcomes").mkdir(parents=True, exist_ok=True)
    (folder / "phase.json").write_text('{"seconds": 1.0}')
    (run.folder / "distill").mkdir(exist_ok=True)
    (run.folder / "distill" / "phase.json").write_text('{"seconds": 2.5}')
    (folder / outcomes_file(model)).write_text(json.dumps(found))
    run.mark_complete()


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return plan_study(str(write_run(tmp_path, kind="sequence_classification")), [], kind_of)


def conducted(plan: StudyPlan, tmp_path: Path, *, without: str | None = None) -> Conducted:
    runs = Runs(plan, str(tmp_path / "recipe.yaml"), [])
    complete: dict[str, list[StudyRun]] = {}
    for run in runs.of_arms():
        assert run.arm is not None
        if run.arm == without:
            continue
        complete.setdefault(run.arm, []).append(run)
        leave(run, "student after", outcomes(run.arm, run.changes["seed"]))
        if run.changes["evaluation.models"] == "all":
            leave(run, "teacher", outcomes("teacher", 0))
    failed = {} if without is None else {f"{without}.seed-0": "exit code 2, see the.log"}
    return Conducted(plan, complete, failed, compare(plan, runs, complete), {})


def test_tables_and_verdicts_agree_with_what_runs_scored(plan: StudyPlan, tmp_path: Path) -> None:
    study = conducted(plan, tmp_path)
    (part,) = study.parts
    assert (part.part, part.decides, part.num_examples) == ("held-out", True, NUM_EXAMPLES)
    for name, arm in part.arms.items():
        for seed, score in arm.by_seed.items():
            assert score == sum(outcomes(name, seed)["columns"]["right"]) / NUM_EXAMPLES
    means = {name: sum(arm.by_seed.values()) / 3 for name, arm in part.arms.items()}
    gain = means["kd"] - means["sft"]
    better, *others = verdicts_of(study)
    assert better.startswith(f"kd is better than sft by {100 * gain:.1f} points [+")
    assert [one.partition(" ")[0] for one in others] == ["none", "no"], "lwd is sft, example by example"
    table, costs = tables_of(study)
    rows = {row[0]: row for row in table.rows}
    assert [*rows] == ["sft", "kd", "lwd", "ted", "teacher"]
    assert rows["kd"][5] == f"+{100 * gain:.1f}"
    assert part.teacher is not None
    assert rows["kd"][-1].startswith(f"{100 * gain / (part.teacher - means['sft']):.0f} % [")
    assert rows["sft"][-1] == rows["teacher"][-1] == "–"
    assert [row[0] for row in costs.rows] == ["sft", "kd", "lwd", "ted"]
    assert {row[-1] for row in costs.rows} == {"2.5"}, "scoring is nobody's cost"


def test_what_is_written_is_the_same_each_time(plan: StudyPlan, tmp_path: Path) -> None:
    output = plan.recipe.output_dir
    found = []
    for _ in range(2):
        write(conducted(plan, tmp_path), output)
        found.append([(output / name).read_bytes() for name in ("study.json", "study.md")])
    assert found[0] == found[1]
    assert sorted(one.name for one in output.iterdir()) == ["runs", "study.json", "study.md"]


def test_an_arm_that_is_not_complete_is_named_and_left_out(plan: StudyPlan, tmp_path: Path) -> None:
    study = conducted(plan, tmp_path, without="ted")
    assert "ted" not in study.parts[0].arms
    assert as_json(study)["failed"] == {"ted.seed-0": "exit code 2, see the.log"}
    write(study, plan.recipe.output_dir)
    markdown = (plan.recipe.output_dir / "study.md").read_text()
    assert "Not complete: ted.seed-0 (exit code 2, see the.log)." in markdown


def test_without_the_baseline_nothing_is_compared_and_that_is_said(plan: StudyPlan, tmp_path: Path) -> None:
    study = conducted(plan, tmp_path, without="sft")
    assert verdicts_of(study) == ["sft, which all are compared with, is not complete: nothing is compared"]
    assert all(arm.difference is None for arm in study.parts[0].arms.values())


def test_a_search_whose_best_is_at_an_edge_is_doubted(plan: StudyPlan, tmp_path: Path) -> None:
    rates = (1e-4, 2e-4, 3e-4)
    tried = [Tried(number, {"distill.learning_rate": rate}, 0, 0.5) for number, rate in enumerate(rates)]
    arms = {**plan.arms, "kd": replace(plan.arms["kd"], changes={"distill.learning_rate": 3e-4})}
    study = replace(conducted(plan, tmp_path), plan=replace(plan, arms=arms), tried={"kd": tried})
    assert verdicts_of(study)[-1].startswith("kd: distill.learning_rate=0.0003 is the highest of 3 that were tried")


def test_a_study_without_any_complete_arm_still_says_what_failed(plan: StudyPlan, tmp_path: Path) -> None:
    runs = Runs(plan, str(tmp_path / "recipe.yaml"), [])
    study = Conducted(plan, {}, {"sft.seed-0": "exit code 1, see a.log"}, compare(plan, runs, {}), {})
    plan.recipe.output_dir.mkdir()
    write(study, plan.recipe.output_dir)
    assert verdicts_of(study) == []
    assert len(tables_of(study)) == 1


def test_other_examples_and_damaged_outcomes_are_refused(plan: StudyPlan, tmp_path: Path) -> None:
    study = conducted(plan, tmp_path)
    runs = Runs(plan, str(tmp_path / "recipe.yaml"), [])
    run = study.complete["kd"][1]
    other = outcomes("kd", 1)
    other["ids"][3] = "another"
    leave(run, "student after", other)
    with pytest.raises(CheckpointError, match=f"^{run.folder}: was scored on other examples than "):
        compare(plan, runs, study.complete)
    place = run.folder / "evaluate" / outcomes_file("student after")
    place.write_text("{")
    with pytest.raises(CheckpointError, match=rf"^{place}: missing or damaged \(.*; remove {place.parents[1]} and "):
        compare(plan, runs, study.complete)
