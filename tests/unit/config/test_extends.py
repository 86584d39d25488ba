"""A recipe that extends another is the one recipe that both come to; what is wrong is said of the file it stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ted_ds.config.extends import MOST_FILES
from ted_ds.config.load import load_recipe
from ted_ds.errors import ConfigError
from ted_ds.planning.plan import plan_recipe
from ted_ds.planning.plan_in_words import describe
from ted_ds.tasks.kind import kind_of
from tests.tiny import recipe_dict, write_run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return write(tmp_path / "shared" / "base.yaml", recipe_dict(tmp_path, kind="sequence_classification"))


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def small(base: Path, *, extends: str = "shared/base.yaml", **content: Any) -> Path:
    return write(base.parent.parent / "small.yaml", {"extends": extends, **content})


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def test_mappings_are_merged_and_all_else_is_replaced(base: Path) -> None:
    path = small(
        base,
        name="other",
        distill={"learning_rate": 5e-4},
        data={"train": [{"path": "one.csv"}, {"path": "two.csv"}]},
        student={"from_teacher": {"blocks": [1]}},
    )
    below, found = load_recipe(base), load_recipe(path)
    assert found.name == "other"
    assert found.distill == below.distill.model_copy(update={"learning_rate": 5e-4})
    assert [source.path for source in found.data.train] == ["one.csv", "two.csv"]
    assert found.data.heldout_fraction == below.data.heldout_fraction
    assert found.student.from_teacher is not None
    assert found.student.from_teacher.blocks == [1]
    assert found.teacher == below.teacher


def test_null_is_a_value_and_so_one_of_two_settings_takes_the_place_of_the_other(base: Path) -> None:
    path = small(
        base,
        distill={"max_steps": None, "epochs": 3},
        student={"path": "mine", "from_teacher": None},
        checkpoint={"every_minutes": None},
    )
    found = load_recipe(path)
    assert (found.distill.max_steps, found.distill.epochs) == (None, 3)
    assert (found.student.path, found.student.from_teacher) == ("mine", None)
    assert found.checkpoint.every_minutes is None


def test_a_task_of_another_kind_keeps_nothing_of_the_one_it_replaces(base: Path) -> None:
    path = small(base, task={"kind": "regression", "target_columns": ["score"]})
    assert load_recipe(path).task.model_fields_set == {"kind", "target_columns"}
    same = small(base, task={"kind": "sequence_classification", "max_length": 9})
    assert load_recipe(same).task == load_recipe(base).task.model_copy(update={"max_length": 9})


def test_a_chain_is_followed_each_file_from_its_own_folder_and_the_command_line_comes_last(base: Path) -> None:
    write(base.parent / "middle.yaml", {"extends": "base.yaml", "seed": 1, "distill": {"warmup_steps": 1, "eps": 0.5}})
    path = small(base, extends="shared/middle.yaml", distill={"eps": 0.25})
    found = load_recipe(path, ["distill.betas=[0.5, 0.5]", "seed=3"])
    assert (found.seed, found.distill.warmup_steps, found.distill.eps) == (3, 1, 0.25)
    assert found.distill.betas == (0.5, 0.5)


def test_it_is_the_same_recipe_as_one_file_with_all_of_it(base: Path) -> None:
    content = yaml.safe_load(base.read_text())
    content["distill"]["learning_rate"] = 0.125
    whole = write(base.parent / "whole.yaml", content)
    assert load_recipe(small(base, distill={"learning_rate": 0.125})) == load_recipe(whole)


def test_what_is_taken_from_elsewhere_is_taken_of_the_whole(base: Path) -> None:
    content = yaml.safe_load(base.read_text()) | {"output_dir": "runs/${name}-${seed}"}
    write(base, content)
    assert str(load_recipe(small(base, name="tall", seed=4)).output_dir) == "runs/tall-4"
    assert refusal(small(base, seed=4, precision="${nmae}")) == [
        f"{base.parent.parent / 'small.yaml'}: precision: ${{nmae}}: the recipe has no such key"
    ]
    write(base, content | {"output_dir": "${nmae}"})
    path = small(base, seed=4)
    assert refusal(path) == [f"{base} (extended by {path}): output_dir: ${{nmae}}: the recipe has no such key"]


def test_each_mistake_is_said_of_the_file_it_stands_in(base: Path) -> None:
    content = yaml.safe_load(base.read_text())
    content["distill"] |= {"learning_rate": "fast", "betsa": [0, 0]}
    content["data"]["train"][0]["path"] = ""
    del content["teacher"]
    write(base, content)
    base.write_text(base.read_text() + "seed: 1\nseed: 2\n")
    path = small(base, distill={"micro_batch_size": 3, "eps": -1}, evaluation={"every": 3})
    found = refusal(path, "tracking.log_every_steps=0")
    below = f"{base} (extended by {path})"
    assert sorted(line.partition(": ")[0] + ": " + line.split(": ")[1] for line in found) == sorted(
        [
            f"{below}: distill.learning_rate",
            f"{below}: distill.betsa",
            f"{below}: data.train[0].path",
            f"{below}: line {len(base.read_text().splitlines())}",
            f"{path}: distill.eps",
            f"{path}: distill",  # 4 is no multiple of 3
            f"{path}: evaluation.every",
            f"{path}: teacher",
            f"{path}: tracking.log_every_steps",
        ]
    )


def test_a_list_or_value_that_replaces_another_is_its_own_files(base: Path) -> None:
    path = small(base, data={"train": [{"path": "x", "format": "odd"}]}, student=None)
    assert [line.split(": ")[:2] for line in refusal(path)] == [
        [str(path), "data.train[0].format"],
        [str(path), "student"],
    ]


def test_files_and_models_that_are_missing_are_said_of_the_file_that_names_them(tmp_path: Path) -> None:
    base = write_run(tmp_path)
    path = write(tmp_path / "small.yaml", {"extends": "recipe.yaml", "deepspeed": "/none.json"})
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(path), ["teacher.path=/none"], kind_of)
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        [str(path), "deepspeed"],
        [str(path), "teacher.path"],
    ]
    content = yaml.safe_load(base.read_text())
    content["data"]["train"][0]["path"] = "/none.jsonl"
    write(base, content)
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(path), [f"deepspeed={content['deepspeed']}"], kind_of)
    where = f"{base} (extended by {path})"
    assert str(caught.value) == f"{where}: data.train[0].path: /none.jsonl: no such data file or folder"


def test_check_prints_the_chain(tmp_path: Path) -> None:
    base = write_run(tmp_path)
    path = write(tmp_path / "small.yaml", {"extends": "recipe.yaml", "name": "small"})
    for file, expected in ((path, [f"recipe    {path} extends {base}"]), (base, [])):
        recipe, plan = plan_recipe(str(file), [], kind_of)
        lines = describe(recipe, plan, num_ranks=1).splitlines()
        assert [line for line in lines if line.startswith("recipe ")] == expected


# --- what cannot be extended ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [["base.yaml"], "", 5, None, {"path": "base.yaml"}])
def test_one_file_is_extended(base: Path, given: Any) -> None:
    path = write(base.parent / "small.yaml", {"extends": given})
    (message,) = refusal(path)
    assert message == (
        f"{path}: extends: {given!r}: use the path of one recipe, from the folder of this one; that recipe may extend "
        "another"
    )


def test_a_file_that_is_not_there_is_named_with_where_it_was_looked_for(base: Path) -> None:
    path = small(base, extends="base.yaml")
    assert refusal(path) == [
        f"{path}: extends: 'base.yaml': no such recipe file, looked for in the folder of this one "
        f"({path.parent / 'base.yaml'})"
    ]


def test_a_circle_is_named(base: Path) -> None:
    path = small(base)
    write(base, {"extends": "../small.yaml"})
    back = base.parent / "../small.yaml"
    assert refusal(path) == [
        f"{base}: extends: '../small.yaml': leads back to itself: {path} extends {base} extends {back}"
    ]
    itself = write(base.parent / "own.yaml", {"extends": "own.yaml"})
    assert refusal(itself) == [f"{itself}: extends: 'own.yaml': leads back to itself: {itself} extends {itself}"]


def test_a_chain_has_an_end(base: Path) -> None:
    below = base
    for number in range(MOST_FILES):
        below = write(base.parent / f"{number}.yaml", {"extends": below.name})
        if number < MOST_FILES - 1:
            load_recipe(below)
    (message,) = refusal(below)
    assert message == (
        f"{base.parent / '0.yaml'}: extends: 'base.yaml': more than {MOST_FILES} files extend each other; merge some "
        "of them"
    )


def test_what_is_no_recipe_is_said_of_its_own_file(base: Path) -> None:
    path = small(base)
    base.write_text("- a\n")
    assert refusal(path) == [f"{base}: a recipe is a mapping of keys to values"]


def test_it_stands_in_a_file_and_not_on_the_command_line(base: Path) -> None:
    assert refusal(base, "extends=other.yaml") == [
        "command line: 'extends=other.yaml': what a recipe extends stands in its file; write it there"
    ]


# --- constants --------------------------------------------------------------------------------------------------------


def test_a_constant_stands_where_it_is_named_and_nowhere_else(base: Path) -> None:
    path = small(
        base,
        constants={"weights": {"kd": [3, 0], "ted": [2, 50]}, "rate": 5e-4},
        distill={
            "kl_weight": "${constants.weights.${distill.method}[0]}",
            "feature_weight": "${constants.weights.${distill.method}[1]}",
            "learning_rate": "${constants.rate}",
        },
    )
    found = load_recipe(path).distill
    assert (found.method, found.kl_weight, found.feature_weight, found.learning_rate) == ("ted", 2, 50, 5e-4)
    other = load_recipe(path, ["distill.method=kd", "constants.rate=1e-3"]).distill
    assert (other.kl_weight, other.feature_weight, other.learning_rate) == (3, 0, 1e-3)
    assert "constants" not in load_recipe(path).model_dump()


def test_constants_of_files_are_merged(base: Path) -> None:
    write(base, yaml.safe_load(base.read_text()) | {"seed": "${constants.seed}", "constants": {"seed": 3, "other": 4}})
    assert load_recipe(base).seed == 3
    assert load_recipe(small(base, constants={"seed": 5})).seed == 5
    assert load_recipe(small(base, constants={"seed": "${constants.other}"})).seed == 4


@pytest.mark.parametrize("constants", [[1], "x", 3])
def test_constants_that_have_no_names_are_refused(base: Path, constants: object) -> None:
    path = small(base, constants=constants)
    assert refusal(path) == [
        f"{path}: constants: {constants!r}: use a mapping of names of your own to values, which ${{constants.NAME}} "
        "stands for anywhere in the recipe"
    ]


def test_a_constant_that_is_not_there_is_named(base: Path) -> None:
    path = small(base, constants={"a": 1}, distill={"kl_weight": "${constants.b}"})
    assert refusal(path) == [f"{path}: distill.kl_weight: ${{constants.b}}: the recipe has no such key"]
