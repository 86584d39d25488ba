"""Relative paths in a recipe: those with a dot, and what is not in the working directory, are from its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ted_ds.config.load import load_draft, load_recipe
from ted_ds.config.places import sections_at
from ted_ds.config.relative_paths import READ, WRITTEN
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section
from ted_ds.errors import ConfigError
from tests.task_kinds import plan_recipe
from tests.tiny import ROOT, recipe_dict, write_run

VALUES: dict[str, Any] = {
    "name": "mine",
    "output_dir": "runs/mine",
    "task": {"kind": "causal_lm", "sequence_length": 16},
    "data": {"train": [{"path": "rows.jsonl"}]},
    "teacher": {"path": "models/teacher"},
    "student": {"path": "org/student"},
    "distill": {"method": "kd", "max_steps": 2},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recipe in a folder of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project" / "models").mkdir(parents=True)
    return tmp_path


def write(place: Path, changes: dict[str, Any], name: str = "project/recipe.yaml") -> str:
    (place / name).write_text(yaml.safe_dump(VALUES | changes), encoding="utf-8")
    return name


def test_what_is_in_the_working_directory_is_meant_there(place: Path) -> None:
    recipe = write(place, {})
    for folder in (place, place / "project"):
        (folder / "rows.jsonl").touch()
        (folder / "models" / "teacher").mkdir(parents=True)
    found = load_recipe(recipe)
    assert (found.data.train[0].path, found.teacher.path) == ("rows.jsonl", "models/teacher")


def test_what_is_beside_the_recipe_alone_is_meant_there(place: Path) -> None:
    recipe = write(place, {})
    (place / "project" / "rows.jsonl").touch()
    (place / "project" / "models" / "teacher").mkdir()
    found = load_recipe(recipe)
    assert (found.data.train[0].path, found.teacher.path) == ("./project/rows.jsonl", "./project/models/teacher")
    assert found.student.path == "org/student"  # of the hub
    assert found.output_dir == Path("runs/mine")  # what is written is not looked for
    assert load_recipe(place / recipe).teacher.path == str(place / "project" / "models" / "teacher")
    (place / "project" / "rows.jsonl").rename(place / "project" / "part-1.jsonl")
    (place / recipe).write_text((place / recipe).read_text().replace("rows.jsonl", "part-*.jsonl"))
    assert load_recipe(recipe).data.train[0].path == "./project/part-*.jsonl"


def test_a_dot_is_the_folder_of_the_recipe_whether_anything_is_there_or_not(place: Path) -> None:
    (place / "rows.jsonl").touch()
    changes: dict[str, Any] = {
        "output_dir": "./runs",
        "shared_phases": "../shared",
        "data": {"train": [{"path": "./rows.jsonl"}, {"path": "hf://datasets/x"}, {"path": "/far"}]},
        "student": {"path": "./student"},
    }
    found = load_recipe(write(place, changes))
    assert [one.path for one in found.data.train] == ["./project/rows.jsonl", "hf://datasets/x", "/far"]
    assert found.student.path == "./project/student"
    assert (found.output_dir, found.shared_phases) == (Path("project/runs"), Path("project/../shared"))


def test_the_command_line_is_in_the_working_directory(place: Path) -> None:
    (place / "project" / "rows.jsonl").touch()
    recipe = write(place, {})
    overrides = ["student={path: ./student}", "data.train[0].path=rows.jsonl", "output_dir=./out"]
    found = load_recipe(recipe, overrides)
    assert (found.student.path, found.data.train[0].path) == ("./student", "rows.jsonl")
    assert found.output_dir == Path("out")


def test_each_file_of_a_chain_has_its_own_folder(place: Path) -> None:
    write(place, {"teacher": {"path": "./teacher"}, "student": {"path": "./student"}}, "base.yaml")
    (place / "project" / "recipe.yaml").write_text("extends: ../base.yaml\nstudent: {path: ./student}\n")
    found = load_recipe("project/recipe.yaml")
    assert (found.teacher.path, found.student.path) == ("./project/../teacher", "./project/student")


def test_names_that_ship_stay_names(place: Path) -> None:
    assert load_recipe(write(place, {"deepspeed": "zero3"})).deepspeed.name == "zero3.json"
    (place / "project" / "own.json").touch()
    assert load_recipe(write(place, {"deepspeed": "own.json"})).deepspeed == Path("project/own.json")


def test_arms_of_a_study_follow_its_recipe(place: Path) -> None:
    arms = {"kd": None, "other": {"student.path": "./other", "distill.method": "sft", "student": {"path": "../b"}}}
    found = load_recipe(write(place, {"study": {"arms": arms}})).study
    assert found is not None
    assert found.changes_of("other")["student.path"] == "./project/other"
    assert found.changes_of("other")["student"] == {"path": "./project/../b"}


def test_what_is_nowhere_is_said_to_be_in_neither_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    values = recipe_dict(tmp_path / "project")
    values["data"]["train"] = [{"path": "none.jsonl"}, {"path": "./train.jsonl"}, {"path": "./here.jsonl"}]
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "project" / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        plan_recipe("project/recipe.yaml", [])
    prefix = "project/recipe.yaml: data.train"
    assert str(caught.value).splitlines() == [
        f"{prefix}[0].path: none.jsonl: no such data file or folder (nor ./project/none.jsonl, in the folder of the "
        "recipe)",
        f"{prefix}[2].path: project/here.jsonl: no such data file or folder (./here.jsonl is in the working directory, "
        "but what begins with ./ or ../ is from the folder of the recipe)",
    ]


def paths_in(section: type[Section], place: str = "") -> Iterator[str]:
    """The places of all paths that a section has by its types."""
    for name, field in section.model_fields.items():
        own = f"{place}.{name}".lstrip(".")
        if Path in (field.annotation, *get_args(field.annotation)):
            yield own
        for inner in sections_at(field.annotation, []) or [
            one for kind in ([] if name != "task" else get_args(field.annotation)) for one in get_args(kind) or [kind]
        ]:
            yield from paths_in(inner, own)


def test_every_path_of_the_schema_is_looked_at() -> None:
    found = {*paths_in(Recipe)}
    assert {"output_dir", "deepspeed", "task.chat_template", "student.from_config.path"} <= found
    for place in found:
        assert READ.fullmatch(place) or WRITTEN.fullmatch(place), place


def test_no_recipe_that_ships_depends_on_its_folder() -> None:
    for recipe in (ROOT / "ds_configs" / "recipes").rglob("*.yaml"):
        if recipe.stem != "base":  # no recipe by itself
            assert load_draft(recipe).chain.followed == {}
