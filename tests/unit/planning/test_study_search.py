"""Which settings are tried, with how many steps, and what is wrong with a search."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ted_ds.config.study import Search
from ted_ds.planning.study_plan import describe_study, with_settings
from ted_ds.planning.study_search import numbers_of_rounds, settings_of, shortened
from tests.study_plans import planned, refusal
from tests.tiny import write_labelled, write_recipe, write_run

RATE, WEIGHT = "distill.learning_rate", "distill.feature_weight"
GRIDS = {"sft": {RATE: [1e-3, 2e-3, 3e-3]}, "ted": {RATE: [1e-3, 2e-3], WEIGHT: [1, 10]}}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = write_run(tmp_path, kind="sequence_classification")
    recipe = yaml.safe_load(path.read_text())
    recipe["data"]["test"] = [{"path": str(write_labelled(tmp_path / "test.jsonl", 20, seed=4))}]
    recipe["study"] = {"arms": {"sft": None, "ted": None}, "search": {"trials": 3, "grids": GRIDS}}
    return write_recipe(path, recipe)


def test_all_arms_have_as_many_trials_and_each_setting_is_tried_once(recipe_file: Path) -> None:
    trials = planned(recipe_file).trials
    assert {name: [trial.number for trial in of_arm] for name, of_arm in trials.items()} == {
        "sft": [0, 1, 2],
        "ted": [0, 1, 2],
    }
    assert [trial.setting for trial in trials["sft"]] == [{RATE: rate} for rate in (1e-3, 2e-3, 3e-3)]
    settings = [tuple(trial.setting.values()) for trial in trials["ted"]]
    assert len({*settings}) == 3
    assert {*settings} < {(1e-3, 1), (1e-3, 10), (2e-3, 1), (2e-3, 10)}
    for trial in trials["ted"]:
        distill = trial.arm.recipe.distill
        assert (distill.learning_rate, distill.feature_weight) == tuple(trial.setting.values())
        assert distill.method == "ted"


def test_what_is_drawn_hangs_on_the_seed_alone() -> None:
    search = Search(trials=3, grids={"a": {"x": [*range(10)], "y": [*range(10)]}})
    assert settings_of(search, "a", 1) == settings_of(search, "a", 1)
    assert settings_of(search, "a", 1) != settings_of(search, "a", 2)


def test_rounds_halve_the_trials_and_double_the_steps(recipe_file: Path) -> None:
    assert numbers_of_rounds(Search(trials=9, halvings=3, grids={})) == [9, 4, 2, 1]
    assert numbers_of_rounds(Search(trials=4, grids={})) == [4]
    arm = planned(recipe_file, "distill.max_steps=41", "distill.warmup_steps=40").arms["ted"]
    assert shortened(arm.recipe, arm.steps, 0) == {}
    assert shortened(arm.recipe, arm.steps, 2) == {"distill.max_steps": 10, "distill.warmup_steps": 9}
    in_epochs = ("distill.max_steps=null", "distill.epochs=3", "distill.warmup_steps=4")
    arm = planned(recipe_file, *in_epochs).arms["ted"]
    assert shortened(arm.recipe, arm.steps, 1) == {"distill.epochs": 1.5, "distill.warmup_steps": 2}


def test_chosen_settings_are_the_arms_and_compute_is_made_equal_anew(recipe_file: Path) -> None:
    chosen = {"sft": {RATE: 2e-3}, "ted": {RATE: 1e-3, WEIGHT: 10}}
    arms = with_settings(planned(recipe_file), chosen).arms
    assert arms["sft"].recipe.distill.learning_rate == 2e-3
    assert arms["ted"].recipe.distill.feature_weight == 10
    plan = planned(recipe_file, "study.equal=compute", "distill.max_steps=50")
    healed = with_settings(plan, {"sft": {}, "ted": {"student.heal": {}}}).arms
    assert (healed["sft"].steps or 0) > (plan.arms["sft"].steps or 0)


def test_check_says_how_many_are_tried(recipe_file: Path) -> None:
    lines = describe_study(planned(recipe_file, "study.search.halvings=1")).splitlines()
    assert lines[1] == "search    3 > 1 trials of each arm with seed 0, chosen on held-out data"


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        (
            "data.test=null",
            [
                "R: study.search: chooses on the held-out data, which then say too much of what is chosen; give "
                "data.test, which is looked at once"
            ],
        ),
        (
            f"study.search.grids={{ted: {{{RATE}: [1, 2, 3]}}, tde: {{{RATE}: [1, 2, 3]}}}}",
            [
                "R: study.search.grids.tde: no such arm; use sft, ted",
                "R: study.search.grids: sft: all arms are given as many trials, so that none is better for having been "
                "tried more; give each a grid",
            ],
        ),
        (
            "study.search.trials=4",
            ["R: study.search: grids.sft: has 3 settings; all arms are given 4 trials, so give more values"],
        ),
        (
            "study.search.halvings=2",
            ["R: study.search: halvings: 2: 3 trials cannot be halved so often; use fewer, or more trials"],
        ),
        (
            f"study.search.grids.sft={{{RATE}: [1, 1.0, 2, 3]}}",
            [f"R: study.search: grids.sft: {RATE}: [1, 1.0, 2, 3]: give one value or more, each once"],
        ),
        (
            "study.search.grids.sft={teacher.path: [a, b, c]}",
            [
                "R: study.search: grids.sft: teacher.path: all arms have the teacher that their recipe says; remove it",
            ],
        ),
        (
            "study.search.grids.sft={seed: [1, 2, 3]}",
            ["R: study.search: grids.sft: seed: all arms have the seeds of study.seeds; remove it"],
        ),
        (
            f"study.search.grids.sft={{{RATE}: [0, 1, -1]}}",
            [
                f"setting sft ({RATE}=0) of the study: R: {RATE}: 0: use a number above 0",
                f"setting sft ({RATE}=-1) of the study: R: {RATE}: -1: use a number above 0",
            ],
        ),
    ],
)
def test_a_search_that_does_not_fit_is_refused(recipe_file: Path, override: str, messages: list[str]) -> None:
    assert refusal(recipe_file, override) == messages
