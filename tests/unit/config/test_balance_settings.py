"""``distill.balance``: what goes with it, where it is refused, and that recipes without it are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.errors import ConfigError
from ted_ds.planning.operations import operations_of_training
from ted_ds.planning.phase import DISTILL, FILTERS_TEACHER
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import distill_plan, recipe_dict, write_recipe, write_run

ON = "distill.balance=gradient_norm"
OTHERS = "the gradient of that reaches no block to be compared on; match another layer, too, or give weights without"


def refusal(folder: Path, *overrides: str) -> str:
    path = write_recipe(folder / "recipe.yaml", recipe_dict(folder))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return without_overrides(str(caught.value)).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            "distill.balance_average=0.5 distill.balance_every_steps=7",
            "distill: balance_every_steps and balance_average go with balance: gradient_norm; give that, or remove "
            "what goes with it",
        ),
        (
            f"{ON} distill.method=kd distill.task_weight=0",
            "distill: balance: gradient_norm: kl_weight alone has a weight above 0, and nothing to be balanced with; "
            "remove it, or raise another weight",
        ),
        (
            "distill.balance=measure distill.balance_max_factor=9",
            "distill: balance_max_factor goes with balance: gradient_norm, as measure multiplies no weight; remove it",
        ),
        (
            f"{ON} pipeline.stages=2",
            "distill.balance: gradient_norm: with pipeline.stages above 1 no stage sees the gradients of all terms; "
            "remove it and give weights, or use pipeline.stages: 1 (ZeRO 0-3)",
        ),
    ],
)
def test_what_does_not_go_with_it(tmp_path: Path, overrides: str, says: str) -> None:
    assert refusal(tmp_path, *overrides.split()) == says


def test_weights_that_are_0_throughout_are_not_balanced() -> None:
    plan = distill_plan(method="ted", balance="gradient_norm", task_weight=0, kl_weight=[[0, 0.0], [5, 1.0]])
    assert plan.weighed == ["kl_weight", "feature_weight"]
    assert distill_plan(method="kd").weighed == ["task_weight", "kl_weight"]


def test_it_decides_a_run_and_its_absence_does_not() -> None:
    without = distill_plan().deciding_values()
    with_it = distill_plan(balance="gradient_norm", balance_average=0.5).deciding_values()
    added = {
        "balance": "gradient_norm",
        "balance_every_steps": 100,
        "balance_average": 0.5,
        "balance_max_factor": 10_000,
    }
    assert with_it == {**without, **added}
    assert not added.keys() & without.keys()
    assert distill_plan(balance="measure", balance_every_steps=3).deciding_values() == without


def test_fine_tuning_has_one_term(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))
    (line,) = settings_without_effect(load_recipe(str(path), [ON, "distill.method=sft", "filters=null"]))
    assert line == "without effect: distill.balance (distill.method: sft)"


def test_what_is_measured_is_counted_and_embeddings_alone_are_refused(tmp_path: Path) -> None:
    path, every = str(write_run(tmp_path)), "distill.balance_every_steps=4"
    (plain, plan), (balanced, _) = (plan_recipe(path, ["distill.max_steps=9", *more]) for more in ([], [ON, every]))
    of_plain, of_balanced = (operations_of_training(one, plan, DISTILL) for one in (plain, balanced))
    assert of_plain is not None
    assert of_balanced == pytest.approx(of_plain * (9 + 3 * 3) / 9)  # three terms before steps 0, 4 and 8
    assert operations_of_training(plain, plan, FILTERS_TEACHER) == operations_of_training(
        balanced, plan, FILTERS_TEACHER
    )
    with pytest.raises(ConfigError, match=OTHERS):
        plan_recipe(path, [ON, "layer_map.kind=explicit", "layer_map.pairs=[[0,0]]"])
