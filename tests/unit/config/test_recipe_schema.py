"""The JSON schema of recipes: it takes all that ship, knows every key with its words, and finds what editors show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.config.recipe_schema import FILE, as_json, descriptions_of, recipe_schema
from ted_ds.config.tasks import MaskedLm
from tests.tiny import ROOT, recipe_dict, task_dict

SCHEMAS = Path(sys.prefix) / "schemas"
SHIPPED = sorted((ROOT / "ds_configs" / "recipes").rglob("*.yaml"))
KINDS = (
    *("sequence_classification", "soft_label_classification", "multi_label_classification", "token_classification"),
    *("regression", "multiple_choice", "question_answering", "causal_lm", "masked_lm", "chat", "seq2seq"),
)


@pytest.fixture(scope="module")
def found() -> Any:
    """The mistakes that an editor would show of a recipe's values, by their places."""
    assert SCHEMAS.is_dir(), "jsonschema is missing: tests/run.sh installs it"
    sys.path.append(str(SCHEMAS))  # behind all others
    try:
        from jsonschema import Draft7Validator
    finally:
        sys.path.remove(str(SCHEMAS))
    Draft7Validator.check_schema(recipe_schema())
    validator = Draft7Validator(recipe_schema())
    return lambda values: [".".join(map(str, one.absolute_path)) for one in validator.iter_errors(values)]


def values_of(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_recipes_that_ship_have_no_mistake(file: Path, found: Any) -> None:
    assert found(values_of(file)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_of_all_kinds_have_none(tmp_path: Path, kind: str, found: Any) -> None:
    values = recipe_dict(tmp_path, kind=kind)
    assert found(values) == []
    assert found(values | {"task": task_dict(kind) | {"wat": 1}}) == ["task"]
    whole = load_recipe_of(tmp_path, values).model_dump(mode="json")
    assert found(whole) == []


def load_recipe_of(folder: Path, values: dict[str, Any]) -> Any:
    (folder / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"sead": 1}, ""),
        ({"seed": "one"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"distill": {"learnig_rate": 1e-3}}, "distill"),
        ({"distill": {"method": "tad"}}, "distill.method"),
        ({"task": {"kind": "poetry"}}, "task"),
        ({"extends": 3}, "extends"),
        ({"data": {"train": [{"path": 3}]}}, "data"),
    ],
)
def test_mistakes_are_found(change: dict[str, Any], place: str, found: Any) -> None:
    (only,) = found(change)
    assert only.startswith(place)


@pytest.mark.parametrize(
    "change",
    [
        {"extends": "base.yaml", "task": {"max_length": 64}},
        {"constants": {"mine": [1]}, "seed": "${constants.mine[0]}", "distill": {"kl_weight": "${seed}"}},
        {"student": {"from_teacher": {"num_blocks": "half"}}, "deepspeed": "auto"},
        {"distill": {"kl_weight": [[0, 1.0], [9, 0.5]]}},
        {"study": {"arms": {"kd": None, "mine": {"student.heal": {}}}}},
    ],
)
def test_what_is_right_is_not_a_mistake(change: dict[str, Any], found: Any) -> None:
    assert found(change) == []


def test_what_ships_is_what_the_sections_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / FILE).read_text(encoding="utf-8") == as_json(), f"ted-ds schema > {FILE}"
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == as_json()


def test_keys_have_the_words_below_them() -> None:
    said = descriptions_of(MaskedLm)
    assert said["sequence_length"] == "Tokens per packed sequence."
    assert said["headline"].startswith("The metric that checkpoints")  # of what it is made from
    schema = recipe_schema()
    assert schema["properties"]["deepspeed"]["description"].startswith(
        "DeepSpeed JSON of all trained phases: a file, or"
    )
    assert "`zero2`" in schema["properties"]["deepspeed"]["description"]
    assert schema["properties"]["precision"]["default"] == "bf16"
    assert "``" not in as_json()
    assert ":mod:" not in as_json()
