"""Dropout that a recipe sets: only of models that have it, and that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.errors import ConfigError
from tests.task_kinds import plan_recipe
from tests.tiny import write_run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.dropout.hidden=0.1", "student.dropout.hidden: a llama for causal_lm has no such dropout; remove it"),
        ("student.dropout.classifier=0", "student.dropout.classifier: a llama for causal_lm has no such dropout"),
        ("student.dropout.attention=1", "student.dropout.attention: 1: use a number from 0 to below 1, or null"),
        ("teacher.dropout.attention=0.1", "teacher: dropout.attention: without finetune the teacher does not train"),
    ],
)
def test_a_dropout_that_has_no_effect_is_a_mistake(tmp_path: Path, override: str, message: str) -> None:
    path = write_run(tmp_path)
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(path), [override])
    assert f"{path}: {message}" in str(caught.value)


def test_a_student_may_have_a_dropout_of_its_own(tmp_path: Path) -> None:
    recipe, _ = plan_recipe(str(write_run(tmp_path)), ["student.dropout.attention=0.1"])
    assert (recipe.student.dropout.given, recipe.teacher.dropout.given) == ({"attention": 0.1}, {})
