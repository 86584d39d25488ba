"""What a recipe's solved filters come to, and for which models and widths none can be solved."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.ridge_filters import ridge_mistakes
from ted_ds.planning.ridge_work import describe_ridge
from tests.task_kinds import make_plan, plan_recipe
from tests.tiny import write_model, write_rows, write_run

RIDGE = "filters.initialisation=ridge"
ITSELF = "filters.ridge={student: itself}"


def refusal(run: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(load_recipe(run / "recipe.yaml", [RIDGE, *overrides]), source="tiny.yaml")
    return str(caught.value).removeprefix("tiny.yaml: ")


def test_check_says_what_it_takes(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", [RIDGE, "filters.teacher.max_steps=0"])
    plan = make_plan(recipe)
    # of 2 filters, 36,864 tokens, 17 inputs with the bias, and 16 outputs: products, and a sum of each
    tera = 2 * 36_864 * 17 * (17 + 16) * 2 / 1e12
    about = f"over 32,768 tokens and 4,096 to judge by; their sums are {tera:.3g} x 10^12 operations in fp64\n"
    assert describe_ridge(recipe, plan) == (
        f"ridge     filters_teacher  2 filters of the teacher, 16 -> 16, towards the teacher's last state: a pass of "
        f"the teacher {about}"
        f"ridge     filters_student  2 filters of the student, 16 -> 16, towards what the teacher's filters put out: a "
        f"pass of both models {about}"
    )
    sums = 2 * 17 * (17 + 16) * 2 * 8
    lines = describe_memory(recipe, plan, num_ranks=1).splitlines()
    (of_teacher,) = (line for line in lines if line.startswith("memory    filters_teacher"))
    assert f"(before, to solve filters, {sums / 2**20:.3g} MiB)" in of_teacher
    assert "gradients" not in of_teacher, "nothing trains"
    (of_student,) = (line for line in lines if line.startswith("memory    filters_student"))
    assert of_student.endswith("teacher"), "which is beside it while its filters are solved"


def test_the_students_own_state_needs_no_teacher(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", [RIDGE, ITSELF])
    plan = make_plan(recipe)
    assert "16 -> 16, towards the student's last state: a pass of the student over" in describe_ridge(recipe, plan)
    (line,) = (one for one in describe_memory(recipe, plan, num_ranks=1).splitlines() if "filters_student" in one)
    assert not line.endswith("teacher")


def test_too_few_tokens_are_said_and_nothing_of_filters_that_are_learned(lm_run: Path) -> None:
    recipe = load_recipe(lm_run / "recipe.yaml", [RIDGE, "student.calibration.tokens=16"])
    warning = (
        "WARN      student.calibration.tokens: 16 tokens for the 17 unknowns of each dimension of the teacher's "
        "filters; give more\n"
    )
    assert warning in describe_ridge(recipe, make_plan(recipe))
    plain = load_recipe(lm_run / "recipe.yaml", [])
    assert describe_ridge(plain, make_plan(plain)) == ""


def test_a_head_that_reads_texts_has_an_equation_for_each(tmp_path: Path) -> None:
    write_run(tmp_path, kind="sequence_classification")
    write_rows(tmp_path / "train.jsonl", ({"text": "w" * 22 * 4, "label": row % 2} for row in range(64)))
    recipe = load_recipe(tmp_path / "recipe.yaml", [RIDGE, "student.calibration.tokens=384", "task.max_length=64"])
    of_teacher, doubt, of_student = describe_ridge(recipe, make_plan(recipe)).splitlines()
    # texts of 22 tokens and two around them
    assert "over 384 tokens and 4,096 to judge by, an equation for each of about 16 and 170 texts; their" in of_teacher
    assert f"sums are {2 * 186 * 17 * (17 + 16) * 2 / 1e12:.3g} x 10^12 operations" in of_teacher
    assert doubt == (
        "WARN      student.calibration.tokens: 384 tokens are about 16 texts, each an equation, for the 17 unknowns of "
        "each dimension of the teacher's filters; give more"
    )
    assert "texts" not in of_student, "which are compared with the teacher's at every token"
    short = load_recipe(tmp_path / "recipe.yaml", [RIDGE, "student.calibration.tokens=384", "task.max_length=8"])
    assert "about 48 and 512 texts" in describe_ridge(short, make_plan(short)), "that are cut there"


def test_a_filter_has_the_width_of_what_it_is_solved_towards(lm_run: Path) -> None:
    assert refusal(lm_run, "filters.dim=12", ITSELF).splitlines()[0] == (
        "filters.dim: filters of 12 dimensions cannot be solved towards the teacher's last state, which has 16; remove "
        "filters.dim"
    )


def test_a_student_of_another_width_is_solved_towards_the_teacher(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_model(tmp_path / "student", "llama", blocks=2, hidden=8)
    narrow = ["student.from_teacher=null", f"student.path={tmp_path / 'student'}"]
    assert refusal(tmp_path, *narrow, ITSELF) == (
        "filters.initialisation: filters of 16 dimensions cannot be solved towards the student's last state, which has "
        "8; use filters.dim: 8, or ridge.student: teacher"
    )
    loaded = load_recipe(recipe, [RIDGE, *narrow])
    assert "2 filters of the student, 8 -> 16" in describe_ridge(loaded, make_plan(loaded))


def test_an_encoder_decoder_has_no_head_that_reads_its_encoder(tmp_path: Path) -> None:
    write_run(tmp_path, kind="seq2seq")
    with pytest.raises(ConfigError, match=re.escape("filters.initialisation: ridge: what a seq2seq's encoder puts")):
        load_recipe(tmp_path / "recipe.yaml", [RIDGE])


def mistakes(run: Path, *overrides: str, **changes: Any) -> list[str]:
    """Of a run whose student is changed so."""
    recipe = load_recipe(run / "recipe.yaml", [RIDGE, *overrides])
    plan = make_plan(recipe)
    assert plan.student is not None
    student = dataclasses.replace(plan.student, **changes)
    return [*ridge_mistakes(recipe, plan.teacher, student, plan.filter_dim)]


def test_a_head_that_starts_random_reads_nothing(classification_run: Path) -> None:
    given = ("student.from_teacher=null", f"student.path={classification_run / 'teacher'}")
    (message,) = mistakes(classification_run, ITSELF, *given, has_classifier=False)
    assert message == (
        "filters.ridge.student: itself: the student's weights hold no head for sequence_classification, by which its "
        "filters would be read; add student.finetune, or use teacher"
    )
    assert mistakes(classification_run, *given, has_classifier=False) == [], "the teacher's head reads them"
    assert mistakes(classification_run, ITSELF, has_classifier=False) == [], "cut from the teacher, it has its head"


def test_a_head_that_cannot_run_without_its_blocks_reads_nothing(classification_run: Path) -> None:
    recipe = load_recipe(classification_run / "recipe.yaml", [RIDGE])
    plan = make_plan(recipe)
    assert plan.teacher is not None
    uncut = dataclasses.replace(plan.teacher.family, unstaged="its parts are all over the place")
    teacher = dataclasses.replace(plan.teacher, family=uncut)
    assert [*ridge_mistakes(recipe, teacher, plan.student, plan.filter_dim)] == [
        "filters.initialisation: ridge: the teacher is a bert, whose head cannot be run without its blocks here (its "
        "parts are all over the place); use normal or identity"
    ]


def test_filters_of_models_that_do_not_allow_it_are_trained_unless_they_are_to_be_solved(tmp_path: Path) -> None:
    path = write_run(tmp_path, kind="sequence_classification", family="albert")
    open_choice = ["filters={pooling: mean}", "student.from_teacher={num_blocks: half}"]
    recipe, plan = plan_recipe(str(path), open_choice)
    assert recipe.filters is not None
    assert (recipe.filters.initialisation, recipe.filters.plans["student"].epochs) == ("normal", 1)
    assert "filters.initialisation" not in plan.reasons
    with pytest.raises(ConfigError, match="whose head cannot be run without its blocks here"):
        plan_recipe(str(path), [*open_choice, RIDGE])
