"""What ``check`` knows of models of the hub that are not fetched: by facts beside the recipe, by the hub's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from ted_ds.cli import main
from ted_ds.errors import ConfigError
from ted_ds.planning.plan import Plan
from ted_ds.planning.plan_in_words import describe
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import write_model

HUB = ("teacher.path=org/teacher",)
NAME = "models--org--teacher"


def check(run: Path, *overrides: str, recipe: str = "recipe.yaml") -> Plan:
    return plan_recipe(str(run / recipe), [*HUB, *overrides], looks_up_hub=True)[1]


def refusal(run: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check(run)
    return without_overrides(str(caught.value))


def give_facts(run: Path, folder: str = f"hub/{NAME}", **changes: object) -> Path:
    """The ``config.json`` of the run's own teacher as a fact about one of the hub's."""
    config = json.loads((run / "teacher" / "config.json").read_text(encoding="utf-8"))
    file = run / folder / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return file


@pytest.fixture
def run(lm_run: Path, tmp_path: Path) -> Path:
    """A copy of a run's recipe and teacher that facts may be put beside."""
    folder = tmp_path / "run"
    shutil.copytree(lm_run / "teacher", folder / "teacher")
    shutil.copy(lm_run / "recipe.yaml", folder)
    return folder


@pytest.fixture
def cached(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the same teacher in a hub's cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / NAME
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(run / "teacher", repository / "snapshots" / "abc"))


def test_a_config_beside_the_recipe_is_planned_by(run: Path) -> None:
    file = give_facts(run)
    by_files = plan_recipe(str(run / "recipe.yaml"), [])[1]
    recipe, plan = plan_recipe(str(run / "recipe.yaml"), HUB, looks_up_hub=True)
    assert plan.layer_pairs == by_files.layer_pairs
    assert plan.stages == by_files.stages
    assert plan.student is not None
    assert by_files.student is not None
    assert plan.student.parameters.total == by_files.student.parameters.total
    assert f"teacher   llama, 4 blocks of width 16, by {file} alone: its weights and tokenizer were not looked at" in (
        describe(recipe, plan, num_ranks=1).splitlines()
    )


def test_a_run_does_not_plan_by_facts(run: Path) -> None:
    give_facts(run)
    recipe, plan = plan_recipe(str(run / "recipe.yaml"), HUB)
    assert plan.teacher is plan.student is None
    assert (
        "teacher   org/teacher: no such folder here, so a name on the hub; known once it is fetched, or its "
        "config.json is beside the recipe (docs/recipes.md)" in describe(recipe, plan, num_ranks=1).splitlines()
    )


def test_facts_beside_an_extended_recipe_count_where_the_nearest_has_none(run: Path) -> None:
    (run / "small").mkdir()
    (run / "small" / "recipe.yaml").write_text("extends: ../recipe.yaml\nseed: 3\n", encoding="utf-8")
    far = give_facts(run)
    assert str(far) in check(run, recipe="small/recipe.yaml").origins["teacher"].replace("small/../", "")
    near = give_facts(run, f"small/hub/{NAME}")
    assert str(near) in check(run, recipe="small/recipe.yaml").origins["teacher"]


def test_a_student_of_its_own_is_looked_up_too(run: Path) -> None:
    give_facts(run)
    give_facts(run, "hub/models--student", num_hidden_layers=2)
    plan = check(run, "student.from_teacher=null", "student.path=student")
    assert plan.student is not None
    assert plan.student.num_blocks == 2
    assert "models--student" in plan.origins["student"]


def test_mistakes_that_a_config_shows_are_found(run: Path) -> None:
    give_facts(run, max_position_embeddings=8)
    assert "teacher.path: task.sequence_length is 16, but this model allows at most 8 tokens" in refusal(run)


def test_a_damaged_config_is_refused_by_its_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = give_facts(run)
    file.write_text("{", encoding="utf-8")
    assert main(["check", str(run / "recipe.yaml"), *HUB]) == 2
    place = f"{run / 'recipe.yaml'}: teacher.path: {file}: not a transformers model config (JSONDecodeError("
    assert capsys.readouterr().err.splitlines()[1].startswith(place)


def test_a_folder_without_a_config_is_refused(run: Path) -> None:
    file = give_facts(run)
    file.unlink()
    assert refusal(run) == (
        f"{run / 'recipe.yaml'}: teacher.path: {file.parent}: no config.json here; put the model's there, or remove "
        "the folder"
    )


def test_what_is_in_the_cache_is_looked_at_as_a_folder_is(run: Path, cached: Path) -> None:
    plan = check(run)
    assert plan.teacher is not None
    assert plan.origins == {"teacher": ""}
    assert plan.text_ends is not None
    (cached / "model.safetensors").write_bytes(b"")
    assert "model.safetensors: damaged or not a safetensors file" in refusal(run)


def test_a_config_alone_in_the_cache_is_planned_by(run: Path, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    assert f"by {cached / 'config.json'} alone" in check(run).origins["teacher"]


def test_facts_that_contradict_the_cache_are_named_and_not_used(run: Path, cached: Path) -> None:
    file = give_facts(run, num_hidden_layers=6)
    plan = check(run)
    assert plan.teacher is not None
    assert plan.teacher.num_blocks == 4
    assert plan.doubts == (
        f"teacher.path: {file} says num_hidden_layers 6, the model in the hub's cache has 4, which counts; correct the "
        "file, or remove it",
    )
    file.write_text((cached / "config.json").read_text())
    assert check(run).doubts == ()


def test_a_local_folder_needs_no_facts(run: Path, tmp_path: Path) -> None:
    give_facts(run, num_hidden_layers=6)
    own = write_model(tmp_path / "own", "llama", blocks=5)
    plan = plan_recipe(str(run / "recipe.yaml"), [f"teacher.path={own}"], looks_up_hub=True)[1]
    assert plan.teacher is not None
    assert plan.teacher.num_blocks == 5
