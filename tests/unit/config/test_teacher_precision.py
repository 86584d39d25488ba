"""What does not go with a teacher whose precision a run is to find out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from tests.tiny import recipe_dict, write_recipe

AUTO = "teacher.precision=auto"
PLAN = "{max_steps: 1, learning_rate: 1e-3, global_batch_size: 4, micro_batch_size: 2}"
CUT = ["student.path=null", "student.from_teacher={blocks: [0, 1]}"]


def refusal(folder: Path, kind: str, *overrides: str) -> list[str]:
    """Each mistake, without the recipe's file."""
    path = write_recipe(folder / "recipe.yaml", recipe_dict(folder, kind=kind, method="kd"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm", "chat", "sequence_classification"])
def test_a_recipe_may_leave_it_open(tmp_path: Path, kind: str) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind=kind, method="kd"))
    teacher = load_recipe(path, [AUTO]).teacher
    assert (teacher.precision, teacher.precision_max_kl) == ("auto", 0.01)
    assert load_recipe(path, [AUTO, "teacher.precision_max_kl=0.1"]).teacher.precision_max_kl == 0.1
    assert load_recipe(path).teacher.precision is None


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("causal_lm", ["distill.method=sft"], ": distill.method: sft has no teacher; remove it"),
        (
            "causal_lm",
            ["distill.method=lwd", "distill.kl_weight=0"],
            ": is chosen by the teacher's predictions, and distill.kl_weight is 0; remove it",
        ),
        (
            "causal_lm",
            ["distill.relation_weight=1", "distill.relation_heads=4"],
            ": is chosen by the teacher's predictions, which say nothing of the queries and keys that "
            "distill.relation_weight compares; remove one of the two",
        ),
        ("regression", [], ": regression outputs are numbers, of which there is no KL; remove it"),
        (
            "causal_lm",
            ["pipeline.stages=2"],
            ": with pipeline.stages above 1 no rank holds all of the teacher to measure it; remove it, or use "
            "pipeline.stages: 1",
        ),
        (
            "causal_lm",
            [*CUT, "student.lora.rank=2"],
            ": with student.lora the teacher may be the student's own base, in its precision; remove it",
        ),
        (
            "causal_lm",
            [*CUT, "student.freeze_blocks=1"],
            ": both models run student.freeze_blocks (1) once, in one precision; remove one of the two",
        ),
        (
            "causal_lm",
            ["teacher.host=zero3"],
            ": a teacher is measured whole on each rank; with host: zero3 remove it",
        ),
        (
            "causal_lm",
            [f"teacher.finetune={PLAN}"],
            ": is measured of the teacher as the run begins, before its finetune; fine-tune it in a run of its own, or "
            "remove one of the two",
        ),
    ],
)
def test_what_says_nothing_or_something_else_is_refused(
    tmp_path: Path, kind: str, overrides: list[str], message: str
) -> None:
    found = refusal(tmp_path, kind, AUTO, *overrides)
    assert any(f"precision: auto{message}" in line for line in found), found


def test_a_bound_of_nothing_is_refused(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, "causal_lm", "teacher.precision_max_kl=0.1")
    assert "precision_max_kl: nothing is measured without precision: auto; give it, or remove this" in line
