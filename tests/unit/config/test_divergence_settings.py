"""``distill.divergence`` and its parameter: what goes together, what it does to a run's identity, and its metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from ted_ds.config.distill import PARAMETERS, Distill
from ted_ds.config.load import load_recipe
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.errors import ConfigError
from ted_ds.numerics.divergences import DIVERGENCES, make_divergence
from ted_ds.output.screen import Screen
from tests.refusals import without_overrides
from tests.task_kinds import TASK_TERMS
from tests.tiny import recipe_dict, write_recipe

KINDS = tuple(DIVERGENCES)
NAMES = {
    "kl": "kl_teacher_student",
    "reverse_kl": "kl_student_teacher",
    "jsd": "jsd_0.5_teacher_student",
    "skew_kl": "skew_kl_0.1_teacher_student",
    "skew_reverse_kl": "skew_kl_0.1_student_teacher",
    "tv": "tv_teacher_student",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))


def distill_of(path: Path, *overrides: str) -> Distill:
    return load_recipe(str(path), overrides).distill


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return without_overrides(str(caught.value)).removeprefix(f"{path}: ")


def test_a_recipe_may_name_each_that_there_is() -> None:
    assert get_args(Distill.model_fields["divergence"].annotation) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_made_with_its_parameter_and_named_by_its_formula(path: Path, kind: str) -> None:
    distill = distill_of(path, f"distill.divergence={kind}")
    divergence = make_divergence(distill.divergence, distill.divergence_parameter)
    assert divergence.name == NAMES[kind]
    names = {task: replace(terms, divergence=divergence).prediction_name for task, terms in TASK_TERMS.items()}
    assert names["causal_lm"] == names["sequence_classification"] == f"loss/{NAMES[kind]}"
    assert names["multi_label_classification"] == f"loss/bernoulli_{NAMES[kind]}"
    assert names["regression"] == "loss/squared_teacher_student"


def test_a_parameter_that_is_given_is_taken(path: Path) -> None:
    distill = distill_of(path, "distill.divergence=jsd", "distill.divergence_beta=0.9")
    assert distill.divergence_parameter == 0.9
    assert make_divergence("jsd", 0.9).name == "jsd_0.9_teacher_student"
    for kind in ("skew_kl", "skew_reverse_kl"):
        distill = distill_of(path, f"distill.divergence={kind}", "distill.divergence_alpha=0.25")
        assert distill.divergence_parameter == 0.25
    assert make_divergence("skew_kl", 1 / 3).name == "skew_kl_0.333333_teacher_student"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill.divergence_beta=0.5"],
            "distill: divergence_beta goes with divergence: jsd, not kl; remove it",
        ),
        (
            ["distill.divergence=tv", "distill.divergence_alpha=0.1"],
            "distill: divergence_alpha goes with divergence: skew_kl or skew_reverse_kl, not tv; remove it",
        ),
        (
            ["distill.divergence=skew_kl", "distill.divergence_beta=0.1"],
            "distill: divergence_beta goes with divergence: jsd, not skew_kl; remove it",
        ),
        (
            ["distill.divergence=jsd", "distill.divergence_beta=0"],
            "distill.divergence_beta: 0: use a number above 0 and below 1, or null",
        ),
        (
            ["distill.divergence=skew_kl", "distill.divergence_alpha=1"],
            "distill.divergence_alpha: 1: use a number above 0 and below 1, or null",
        ),
        (
            ["distill.divergence=jds"],
            "distill.divergence: 'jds': use kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or tv",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(path: Path, overrides: list[str], message: str) -> None:
    assert refusal(path, *overrides) == message


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_have_no_divergence_but_the_default_that_says_nothing(tmp_path: Path, kind: str) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="regression"))
    if kind == "kl":
        assert distill_of(path, "distill.divergence=kl").divergence == "kl"
        return
    assert refusal(path, f"distill.divergence={kind}") == (
        f"distill.divergence: {kind}: regression outputs are compared as numbers, not as distributions; remove it"
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["distill.method=sft", "distill.divergence=jsd", "distill.divergence_beta=0.2", "filters=null"],
            "without effect: distill.divergence, distill.divergence_beta (distill.method: sft)",
        ),
        (
            ["distill.kl_weight=0", "distill.divergence=tv", "distill.temperature=1"],
            "without effect: distill.temperature, distill.divergence (distill.kl_weight: 0)",
        ),
    ],
)
def test_where_no_predictions_are_compared_it_has_no_effect(path: Path, overrides: list[str], line: str) -> None:
    assert line in settings_without_effect(load_recipe(str(path), overrides))


def test_a_run_of_before_there_were_others_goes_on(path: Path) -> None:
    values = distill_of(path).deciding_values()
    assert not {"divergence", *PARAMETERS} & values.keys()
    assert {"method", "kl_weight", "temperature", "max_steps"} <= values.keys()
    assert values == distill_of(path, "distill.divergence=kl", "distill.micro_batch_size=1").deciding_values()


def test_another_divergence_is_another_run_whether_its_default_is_said_or_not(path: Path) -> None:
    default = distill_of(path).deciding_values()
    for kind in KINDS[1:]:
        values = distill_of(path, f"distill.divergence={kind}").deciding_values()
        assert values["divergence"] == kind
        assert {name: value for name, value in values.items() if "divergence" not in name} == default
    unsaid = distill_of(path, "distill.divergence=skew_kl").deciding_values()
    said = distill_of(path, "distill.divergence=skew_kl", "distill.divergence_alpha=0.1").deciding_values()
    other = distill_of(path, "distill.divergence=skew_kl", "distill.divergence_alpha=0.2").deciding_values()
    assert unsaid == said != other


def test_the_screen_shows_each_by_a_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = (*NAMES.values(), "bernoulli_kl_teacher_student")
    for name in names:
        screen = Screen(shown=True)
        screen.start("distill", 10)
        screen.update(1, {"loss/task": 2.0, f"loss/{name}": 0.5, "loss/feature_mse/layer_01": 3.0}, remaining_s=9)
    shown = capsys.readouterr().out.splitlines()
    short = ("kl", "reverse kl", "jsd_0.5", "skew_kl_0.1", "reverse skew_kl_0.1", "tv", "bernoulli_kl")
    assert [line.strip() for line in shown] == [f"distill 1/10  task 2  {one} 0.5  9 s left" for one in short]
