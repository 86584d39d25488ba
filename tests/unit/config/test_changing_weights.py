"""``distill``'s weights that change over steps: what a recipe may say, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.config.needs import Needs
from ted_ds.config.weights import highest, weight_at
from ted_ds.errors import ConfigError
from tests.refusals import without_overrides
from tests.tiny import distill_plan, recipe_dict, write_recipe

POINTS = ((10, 1.0), (20, 0.0), (40, 0.5))


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 1.0), (10, 1.0), (15, 0.5), (20, 0.0), (30, 0.25), (40, 0.5), (10**6, 0.5)]
)
def test_a_weight_changes_linearly_between_its_points(step, weight):
    assert weight_at(POINTS, step) == weight


def test_of_a_plan_each_weight_has_its_own_points():
    plan = distill_plan(method="ted", kl_weight=POINTS, feature_weight=[[0, 3.0], [10, 0.0]])
    assert plan.weights_at(5) == (1.0, 1.0, 1.5, 0.0)
    assert plan.weights_at(None) == (1.0, 1.0, 3.0, 0.0) == (highest(1.0), highest(POINTS), 3.0, 0.0)
    assert plan.changing_weights == ["kl_weight", "feature_weight"]


def test_weights_that_end_behind_the_last_step_need_not_be_above_0_there():
    ending = {"method": "kd", "kl_weight": [[0, 1.0], [1000, 0.0]], "task_weight": [[0, 1.0], [100, 0.0]]}
    assert distill_plan(**ending, max_steps=1000).weights_at(999)[1] > 0
    with pytest.raises(ValueError, match="at step 1000 task_weight and kl_weight are 0"):
        distill_plan(**ending, max_steps=1001)


def test_what_is_needed_at_some_step_is_needed():
    assert distill_plan(method="lwd", kl_weight=[[0, 0.0], [5, 1.0]]).needs == Needs(predictions=True, states=True)


def test_as_numbers_weights_decide_as_they_did():
    values = distill_plan(method="ted", kl_weight=2, feature_weight=0.5).deciding_values()
    assert (values["task_weight"], values["kl_weight"], values["feature_weight"]) == (1.0, 2.0, 0.5)
    assert "feature_distance" not in values
    assert distill_plan(feature_distance="cosine").deciding_values()["feature_distance"] == "cosine"
    assert distill_plan(kl_weight=POINTS).deciding_values()["kl_weight"] == [[10, 1.0], [20, 0.0], [40, 0.5]]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        *(
            (
                f"distill.kl_weight={value}",
                f"distill.kl_weight: {shown}: use a number of at least 0, or [[step, weight], ...] with ascending "
                "steps, not all 0",
            )
            for value, shown in (
                ("-1", "-1"),
                ("[[0,1],[0,2]]", "[[0, 1], [0, 2]]"),
                ("[[0,0]]", "[[0, 0]]"),
                ("[[0,1,2]]", "[[0, 1, 2]]"),
                ("much", "'much'"),
                ("[]", "[]"),
            )
        ),
        (
            "distill.method=kd distill.task_weight=0 distill.kl_weight=[[0,0],[5,1]]",
            "distill: at step 0 task_weight and kl_weight are 0, so that nothing is learned; keep one of them above 0",
        ),
        (
            "distill.method=sft distill.task_weight=[[0,1],[5,2]]",
            "distill: method: sft has one term, whose weight cannot change; give task_weight as a number",
        ),
    ],
)
def test_what_a_weight_cannot_be(tmp_path: Path, overrides: str, says: str):
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides.split())
    assert without_overrides(str(caught.value)) == f"{path}: {says}"
