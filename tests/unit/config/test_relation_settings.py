"""``distill.relation_weight``: what it needs, where it is refused, and that recipes without it are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.config.needs import Needs
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.errors import ConfigError
from ted_ds.models.files import read_model_facts
from ted_ds.planning.relations import relation_blocks
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe
from tests.tiny import distill_plan, recipe_dict, write_model, write_recipe, write_run

ON = "distill.relation_weight=0.5"
FEW = "distill.relation_heads=4"


@pytest.fixture(scope="module")
def lm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose teacher has 4 blocks, and a student that is cut out of it 2."""
    return write_run(tmp_path_factory.mktemp("relations"))


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(str(path), overrides)
    return [
        line.removeprefix("recipe: ").removeprefix(f"{path}: ")
        for line in without_overrides(str(caught.value)).splitlines()
    ]


def test_it_is_a_term_of_its_own_beside_the_others_and_alone() -> None:
    relations = Needs(relations=True)
    assert relations.teacher
    assert distill_plan(method="kd", relation_weight=1.0).needs_of_terms["relations"] == relations
    alone = distill_plan(method="kd", kl_weight=0, relation_weight=[[0, 1.0], [9, 0.0]])
    assert alone.needs == relations
    assert alone.changing_weights == ["relation_weight"]
    assert "relations" not in distill_plan(method="sft", relation_weight=1.0).needs_of_terms
    assert distill_plan(method="ted", relation_weight=2.0).weighed[-1] == "relation_weight"


def test_it_decides_a_run_and_its_absence_does_not() -> None:
    without = distill_plan().deciding_values()
    added = {"relation_weight": 1.0, "relation_heads": 16, "relation_layers": None}
    assert distill_plan(relation_weight=1.0).deciding_values() == {**without, **added}
    assert not added.keys() & without.keys()


def test_fine_tuning_has_none(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))
    recipe = load_recipe(str(path), [ON, FEW, "distill.method=sft", "filters=null"])
    names = "distill.relation_weight, distill.relation_heads"
    assert settings_without_effect(recipe) == [f"without effect: {names} (distill.method: sft)"]


def test_a_student_learns_from_relations_alone(lm_run: Path) -> None:
    recipe, plan = plan_recipe(str(lm_run), [ON, FEW, "distill.method=kd", "distill.kl_weight=0", "filters=null"])
    assert plan.student is not None
    assert plan.teacher is not None
    assert relation_blocks(recipe, plan.student, plan.teacher) == {"student": 2, "teacher": 4}
    chosen, _ = plan_recipe(str(lm_run), [ON, FEW, "distill.relation_layers=[1,3]"])
    assert relation_blocks(chosen, plan.student, plan.teacher) == {"student": 1, "teacher": 3}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            [FEW],
            "distill: relation_heads goes with a relation_weight above 0; give one, or remove what goes with it",
        ),
        (
            [ON, "pipeline.stages=2"],
            "distill.relation_weight: blocks of both models would have to be on one stage; remove it, or use "
            "pipeline.stages: 1",
        ),
        (
            [ON, "torch_compile=true"],
            "distill.relation_weight: compiled blocks hand over no queries, keys and values; set torch_compile to "
            "false",
        ),
        (
            [ON, "distill.relation_heads=5"],
            "distill.relation_heads: 5 does not divide the widths of queries, keys and values (the student's 16; the "
            "teacher's 16); use one of 1, 2, 4, 8, 16",
        ),
        (
            [ON, FEW, "distill.relation_layers=[3,5]"],
            "distill.relation_layers[0]: 3: the student has 2 blocks; use 1 to 2",
        ),
    ],
)
def test_what_does_not_go_with_it(lm_run: Path, overrides: list[str], says: str) -> None:
    assert says in refusal(lm_run, *overrides)


def test_keys_and_values_may_be_narrower_than_queries(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    write_model(tmp_path / "narrow", "llama", blocks=2, num_key_value_heads=1)
    assert read_model_facts(tmp_path / "narrow").parameters.maps[0]["self_attn.k_proj"] == (8, 16)
    given = ["student.from_teacher=null", f"student.path={tmp_path / 'narrow'}", ON]
    (line,) = refusal(path, *given)
    assert "(the student's 8 and 16; the teacher's 16); use one of 1, 2, 4, 8" in line
    plan_recipe(str(path), [*given, "distill.relation_heads=8"])


def test_a_family_whose_maps_are_not_known_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, family="gpt_neox")
    lines = refusal(path, ON, FEW)
    for side in ("student", "teacher"):
        assert (
            f"distill.relation_weight: the {side} is a gpt_neox, of whose blocks it is not known here which maps put "
            "out queries, keys and values; remove it, or use a model of another type"
        ) in lines


def test_a_cache_holds_no_queries(tmp_path: Path) -> None:
    path = write_run(tmp_path, kind="sequence_classification")
    assert refusal(path, ON, FEW, "teacher.cache.max_gib=1") == [
        "distill.relation_weight: the cache holds no queries, keys and values; remove teacher.cache, or the weight"
    ]
