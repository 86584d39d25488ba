"""A recipe that is given in Python is read as its file would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from ted_ds import Recipe
from ted_ds.config.data import Data, Source
from ted_ds.config.defaults import SECTION_OF_KIND
from ted_ds.config.distill import Distill
from ted_ds.config.extends import read_chain
from ted_ds.config.given import source_of
from ted_ds.config.glue import GLUE
from ted_ds.config.layers import Filters
from ted_ds.config.load import CONSTANTS, load_draft, load_recipe
from ted_ds.config.pair import Student, Teacher
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.tasks import Regression, SequenceClassification
from ted_ds.errors import ConfigError
from ted_ds.planning.plan import plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.distill import in_words
from tests.tiny import ROOT, recipe_dict, task_dict
from tests.unit.config.test_defaults import SHIPPED, least


@pytest.fixture
def values(lm_run):
    return recipe_dict(lm_run)


def test_a_mapping_is_read_as_its_file(lm_run, values):
    by_file = load_recipe(lm_run / "recipe.yaml", ["seed=3"])
    assert load_recipe(values, ["seed=3"]) == by_file
    with_paths = {**values, "teacher": {"path": Path(values["teacher"]["path"])}, "data": {**values["data"]}}
    assert load_recipe(with_paths, ["seed=3"]) == by_file
    with_constants = {**values, "constants": {"s": 3}, "seed": "${constants.s}"}
    assert load_recipe(with_constants) == by_file


def test_a_section_may_stand_in_a_mapping(values):
    section = Distill(**values["distill"])
    read = load_recipe({**values, "distill": section})
    assert read == load_recipe(values)
    assert read.distill.model_fields_set == section.model_fields_set


def test_none_leaves_open_what_null_does(values):
    plain = {**values["distill"], "learning_rate": None, "global_batch_size": None}
    by_mapping = load_recipe({**values, "distill": plain})
    section = Distill(**plain)
    assert section.learning_rate is None
    assert load_recipe({**values, "distill": section}) == by_mapping
    assert by_mapping.distill.learning_rate > 0


def test_a_recipe_is_read_as_the_file_it_would_be(lm_run, values):
    recipe = Recipe(**values)
    read = load_recipe(recipe)
    assert read == recipe == load_recipe(lm_run / "recipe.yaml")
    assert read.distill.model_fields_set == load_recipe(values).distill.model_fields_set, "rules ask what was given"
    assert load_recipe(recipe, ["distill.temperature=3"]).distill.temperature == 3


def test_a_recipe_that_was_filled_from_glue_stays_as_it_is(values):
    short = {**values, "data": {"glue": "rte"}, "task": {"max_length": 16}}
    recipe = load_recipe(short)
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe, ["task.max_length=8"]).data == recipe.data


def all_of(given: Any, *overrides: str, **how: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """A recipe in the end: its values, which of them were set, and why they are what they are."""
    draft = load_draft(given, overrides, **how)
    assert (draft.errors, draft.broken_rules, draft.beside) == ([], [], [])
    assert draft.recipe is not None
    recipe = draft.recipe
    return recipe.model_dump(mode="json"), recipe.model_dump(mode="json", exclude_unset=True), draft.reasons


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_an_object_comes_to_what_the_mapping_does(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    values: Any = OmegaConf.to_container(read_chain(file)[0], resolve=True)
    values.pop(CONSTANTS, None)
    if "glue" in values["data"] and "task" in values:  # the class of a section is its kind
        values["task"]["kind"] = GLUE[values["data"]["glue"]].kind
    assert all_of(Recipe(**values)) == all_of(values)


SHORT = {kind: least(kind) for kind in SECTION_OF_KIND} | {
    "finetuned": {**least(), "teacher": {"path": "t", "finetune": {}}, "student": {"path": "s", "finetune": {}}},
    "kd": {**least(), "distill": {"method": "kd"}},
    "filters": {**least(), "filters": {"kind": "mlp"}},
    "one pass": {**least(), "filters": {"both": {}}, "distill": {"micro_batch_tokens": 512}},
    "glue": {**least(), "data": {"glue": "rte"}, "task": {"kind": "sequence_classification", "max_length": 64}},
    "regression of glue": {**least(), "data": {"glue": "stsb"}, "task": {"kind": "regression"}},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_short_object_has_the_defaults_of_a_short_mapping(name):
    values = SHORT[name]
    recipe = Recipe(**values)
    changes = ["distill.max_steps=400", "pipeline.stages=1", "seed=7"]
    for overrides in ([], changes):
        for ranks, can_solve in ((1, True), (8, False)):
            how = {"num_ranks": ranks, "can_solve": can_solve}
            by_object, by_mapping = all_of(recipe, *overrides, **how), all_of(values, *overrides, **how)
            assert by_object == by_mapping
            assert by_mapping[2], "something followed"
    assert recipe.leaves_open, "it is as it was"
    assert not load_recipe(recipe).leaves_open


def test_a_short_object_is_written_with_sections():
    recipe = Recipe(
        task=SequenceClassification(kind="sequence_classification", labels=["no", "yes"], max_length=64),
        data=Data(train=[Source(path="rows.jsonl")]),
        teacher=Teacher(path="teacher", finetune=PhasePlan()),
        student=Student(path="student"),
        filters=Filters(kind="mlp"),
        distill=Distill(feature_weight=3),
    )
    values = {
        "task": {"kind": "sequence_classification", "labels": ["no", "yes"], "max_length": 64},
        "data": {"train": [{"path": "rows.jsonl"}]},
        "teacher": {"path": "teacher", "finetune": {}},
        "student": {"path": "student"},
        "filters": {"kind": "mlp"},
        "distill": {"feature_weight": 3},
    }
    assert all_of(recipe) == all_of(values)
    of_glue = Recipe(data=Data(glue="cola"), teacher=Teacher(path="teacher"), student=Student(path="student"))
    assert all_of(of_glue) == all_of(
        {"data": {"glue": "cola"}, "teacher": {"path": "teacher"}, "student": {"path": "student"}}
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"distill": Distill(max_steps=3, epochs=1)}, "distill: give exactly one of max_steps"),
        (
            {"distill": Distill(global_batch_size=8, micro_batch_size=3)},
            "distill: global_batch_size (8) must be a mult",
        ),
        ({"task": task_dict("causal_lm")}, "distill.max_steps: this key is required: a causal_lm packs documents"),
        ({"task": {"kind": "sequence_classification"}}, "task.labels: this key is required"),
        ({"data": Data()}, "data.train: this key is required"),
        ({"data": Data(glue="rte", train=[Source(path="a")])}, "data.train: data.glue: rte says what is trained on"),
        (
            {"data": Data(glue="rte"), "task": Regression(kind="regression")},
            "task.kind: 'regression': rte of data.glue",
        ),
    ],
)
def test_what_is_wrong_in_a_short_object_is_said_as_of_a_mapping(change, text):
    values = {**least(), **change}
    said = []
    for given in (values, Recipe(**values)):
        with pytest.raises(ConfigError) as caught:
            load_recipe(given)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith(f"recipe: {text}")


def test_a_value_that_is_wrong_by_itself_is_refused_where_it_is_written():
    with pytest.raises(ValidationError, match="greater than 0"):
        Distill(max_steps=-1)
    with pytest.raises(ValidationError, match="Field required"):
        Teacher.model_validate({})
    whole = {"learning_rate": 1e-4, "global_batch_size": 8, "micro_batch_size": 8, "max_steps": 2}
    with pytest.raises(ValidationError, match="must be smaller than max_steps"):
        Distill(**whole, warmup_steps=2)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"seed": -1}, "recipe: seed: -1: use a whole number, 0 or more"),
        ({"sead": 1}, "recipe: sead: unknown key; did you mean 'seed'?"),
        ({"seed": "${none}"}, "recipe: seed: ${none}"),
        ({"deepspeed": object()}, "recipe: Value 'object' is not a supported primitive type"),
        ({"extends": "base.yaml"}, "recipe: extends: 'base.yaml': only the file of a recipe extends another; give"),
    ],
)
def test_mistakes_are_of_the_recipe(values, given, text):
    with pytest.raises(ConfigError) as caught:
        load_recipe({**values, **given})
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("given", [None, 3, ["recipe.yaml"]])
def test_what_is_no_recipe_is_said(given):
    with pytest.raises(ConfigError, match="use the path of a recipe, a mapping with its keys, or a Recipe"):
        load_recipe(given)


def test_a_plan_says_where_its_recipe_is_from(lm_run, values):
    recipe, plan = plan_recipe(values, [], kind_of)
    by_file, of_file = plan_recipe(str(lm_run / "recipe.yaml"), [], kind_of)
    assert recipe == by_file
    assert (plan.files, of_file.files) == (("recipe",), (str(lm_run / "recipe.yaml"),))
    assert load_draft(values).chain.place("seed: no") == "recipe: seed: no"
    assert source_of(values) == source_of(recipe) == "recipe"
    assert source_of(Path("a.yaml")) == source_of("a.yaml") == "a.yaml"


def test_overrides_may_be_a_mapping(values):
    changes = {
        "distill.max_steps": 7,
        "distill.learning_rate": 1e-7,
        "output_dir": Path("a folder/x: y"),
        "filters": None,
        "distill.method": "lwd",
        "tracking.to": ["tensorboard"],
        "preflight": "refuse",
        "tf32": True,
    }
    recipe = load_recipe(values, in_words(changes))
    assert (recipe.distill.max_steps, recipe.distill.learning_rate) == (7, 1e-7)
    assert recipe.output_dir == Path("a folder/x: y")
    assert (recipe.filters, recipe.distill.method, recipe.tf32) == (None, "lwd", True)
    assert in_words(["seed=3"]) == ["seed=3"]
    with pytest.raises(ConfigError, match=r"overrides: seed: \{1\} is no value of a recipe"):
        in_words({"seed": {1}})
