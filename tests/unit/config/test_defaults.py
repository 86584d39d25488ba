"""What a recipe need not say: it follows from the rest, and nothing that is said is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ted_ds.config.defaults import SECTION_OF_KIND
from ted_ds.config.load import load_draft, load_recipe
from ted_ds.config.shipped import AUTO
from ted_ds.errors import ConfigError
from tests.tiny import ROOT, task_dict, write_recipe

SHIPPED = sorted(file for file in (ROOT / "ds_configs" / "recipes").rglob("*.yaml") if file.name != "base.yaml")
PACKED = {"causal_lm", "masked_lm"}
SOLVED = {"max_steps": 0, "learning_rate": 1e-3, "global_batch_size": 32, "micro_batch_size": 4}


def least(kind: str = "sequence_classification") -> dict[str, Any]:
    """All that a recipe must say."""
    return {
        "task": task_dict(kind),
        "data": {"train": [{"path": "rows.jsonl"}]},
        "teacher": {"path": "teacher"},
        "student": {"from_teacher": {"num_blocks": "half"}},
        **({"distill": {"max_steps": 205}} if kind in PACKED else {}),
    }


def read(folder: Path, values: dict[str, Any], *overrides: str, **given: Any) -> dict[str, Any]:
    """The recipe as it is understood, without what is unset."""
    draft = load_draft(write_recipe(folder / "my run.yaml", values), overrides, **given)
    assert draft.recipe is not None
    assert draft.broken_rules == []
    return draft.recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)


@pytest.mark.parametrize("kind", sorted(SECTION_OF_KIND))
def test_the_rest_follows_from_the_task(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, least(kind))
    assert (found["name"], found["output_dir"], found["deepspeed"]) == ("my_run", "runs/my_run", "auto")
    steps = {"max_steps": 205} if kind in PACKED else {"epochs": 1}
    rate = 3e-4 if kind in ("causal_lm", "chat") else 1e-4
    batches = {"global_batch_size": 32, "micro_batch_size": 4}
    assert found["distill"] == {**steps, "learning_rate": rate, **batches}
    plan: dict[str, Any] = SOLVED if kind != "seq2seq" else {"epochs": 1, "learning_rate": 1e-3, **batches}
    own = {"initialisation": "ridge"} if kind != "seq2seq" else {}
    assert found["filters"] == {**own, "teacher": plan, "student": plan}


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda file: file.stem)
def test_recipes_that_say_all_are_left_as_they_are(recipe: Path) -> None:
    assert load_draft(recipe).reasons == {}


@pytest.mark.parametrize(
    ("change", "filters"),
    [
        ({"distill": {"method": "kd"}}, None),
        ({"filters": {"kind": "mlp"}}, {"kind": "mlp", "epochs": 1}),
        ({"filters": {"dim": 8}}, {"dim": 8, "epochs": 1}),
        ({"filters": {"initialisation": "identity"}}, {"initialisation": "identity", "epochs": 1}),
        ({"filters": {"pooling": "mean"}}, {"pooling": "mean", "initialisation": "ridge", "max_steps": 0}),
        # as it has always been, where plans are given
        ({"filters": {"teacher": {"max_steps": 9}, "student": {}}}, {"max_steps": 9, "epochs": 1}),
        (
            {"filters": {"initialisation": "ridge", "both": {"max_steps": 0}}},
            {"initialisation": "ridge", "max_steps": 0},
        ),
        (  # batches follow Stage II
            {"distill": {"global_batch_size": 12, "micro_batch_size": 3}, "filters": {"kind": "mlp"}},
            {"kind": "mlp", "epochs": 1, "global_batch_size": 12, "micro_batch_size": 3},
        ),
        (
            {"distill": {"micro_batch_tokens": 256}},
            {"initialisation": "ridge", "max_steps": 0, "micro_batch_tokens": 256, "micro_batch_size": None},
        ),
    ],
)
def test_filters_follow_from_the_method_and_the_rest(tmp_path, change, filters):
    found = read(tmp_path, {**least(), **change}).get("filters")
    if filters is None:
        assert found is None
        return
    plans = {key: value for key, value in found.items() if isinstance(value, dict)}
    assert plans.keys() in ({"teacher", "student"}, {"both"})
    flat = {key: value for key, value in found.items() if key not in plans}
    for plan in [*plans.values()][::-1]:
        flat = {**plan, **flat}
    assert {key: flat.get(key) for key in filters} == filters
    assert flat["learning_rate"] == 1e-3


def test_filters_of_a_corpus_take_a_tenth_of_the_steps(tmp_path: Path) -> None:
    found = read(tmp_path, least("masked_lm"), "filters={kind: mlp}")["filters"]
    assert found["student"]["max_steps"] == 21


def test_filters_are_not_solved_for_families_without(tmp_path: Path) -> None:
    found = read(tmp_path, least(), can_solve=False)["filters"]
    assert ("initialisation" in found, found["teacher"]["epochs"]) == (False, 1)


def test_plans_of_stage_0_follow(tmp_path: Path) -> None:
    values = least() | {"distill": {"learning_rate": 2e-4, "global_batch_size": 8}}
    values["teacher"]["finetune"], values["student"]["finetune"] = {}, {"epochs": 2}
    found = read(tmp_path, values)
    batches = {"global_batch_size": 8, "micro_batch_size": 4}
    assert found["teacher"]["finetune"] == {"epochs": 3, "learning_rate": 3e-5, **batches}
    assert found["student"]["finetune"] == {"epochs": 2, "learning_rate": 2e-4, **batches}


@pytest.mark.parametrize(
    ("ranks", "stages", "micro"), [(1, 1, 4), (8, 1, 4), (16, 1, 2), (32, 1, 1), (16, 2, 4), (5, 1, 1)]
)
def test_microbatches_divide_the_batch_over_the_ranks(tmp_path, ranks, stages, micro):
    found = read(tmp_path, least(), f"pipeline.stages={stages}", num_ranks=ranks)
    assert {found["distill"]["micro_batch_size"], found["filters"]["teacher"]["micro_batch_size"]} == {micro}


def test_a_part_that_cannot_share_the_batch_of_stage_2_has_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, least() | {"filters": {"both": {"global_batch_size": 6}}}, "distill.micro_batch_size=4")
    assert found["filters"]["both"]["micro_batch_size"] == 2


def test_names_may_be_referred_to(tmp_path: Path) -> None:
    values = least() | {"shared_phases": "shared/${name}", "tracking": {"project": "${name}"}}
    assert read(tmp_path, values)["shared_phases"] == "shared/my_run"
    assert read(tmp_path, values, "name=other")["output_dir"] == "runs/other"
    assert read(tmp_path, values, "name=null")["output_dir"] == "runs/my_run"


def test_what_is_wrong_is_not_replaced(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", least() | {"filters": 3, "distill": {"micro_batch_size": "many"}})
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["filters", "distill.micro_batch_size"]


@pytest.mark.parametrize(
    "content", ["[1]", "task: 3", "distill: [2]", "teacher: {finetune: []}", "pipeline: {stages: x}"]
)
def test_what_is_no_recipe_is_said_to_be_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "r.yaml")


def test_each_value_that_was_put_there_has_its_reason(tmp_path: Path) -> None:
    reasons = load_draft(write_recipe(tmp_path / "r.yaml", least()), num_ranks=2).reasons
    assert reasons["distill.epochs"] == "one pass over the training rows"
    assert reasons["filters.initialisation"] == "solved in closed form"
    assert reasons["filters.teacher.global_batch_size"] == "as distill.global_batch_size"
    assert reasons["output_dir"] == "in runs, by name"
    assert "distill" not in reasons  # sections have none of their own
    assert yaml.safe_load((tmp_path / "r.yaml").read_text()) == least()


def test_the_choice_of_a_deepspeed_file_is_open(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", least())
    assert load_recipe(path).deepspeed == load_recipe(path, ["deepspeed=auto"]).deepspeed == AUTO
