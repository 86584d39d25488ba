"""A recipe that is given in Python is read as its file would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds import Recipe
from ted_ds.config.distill import Distill
from ted_ds.config.given import source_of
from ted_ds.config.load import load_draft, load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.plan import plan_recipe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.distill import in_words
from tests.tiny import recipe_dict


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
