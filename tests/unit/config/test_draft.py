"""Recipes with several mistakes: one does not hide the others, and none is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.load import draft_mistakes, load_draft
from tests.tiny import recipe_dict, task_dict, write_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path))


def mistakes(path: Path, *overrides: str) -> list[str]:
    return draft_mistakes(load_draft(path, overrides))


def test_values_rules_of_sections_and_rules_of_the_recipe_come_at_once(path: Path) -> None:
    found = mistakes(
        path,
        "distil.kl_weight=2",  # unknown section
        "distill.kl_wieght=2",  # unknown key
        "seed=-1",  # wrong value with a default
        "filters.teacher.max_steps=none",  # and without one
        "student.path=also",  # a rule of a section
        "filters.initialisation=identity",
        "filters.kind=mlp",
        "attention=flash",  # rules of the recipe
        "precision=fp32",
        "export=best",
    )
    places = [message.split(":")[0] for message in found]
    assert sorted(places) == sorted(
        [
            "distil",
            "distill.kl_wieght",
            "seed",
            "filters.teacher.max_steps",
            "student",
            "filters",
            "attention",
            "export",
        ]
    )


def placed(path: Path, *overrides: str) -> list[str]:
    draft = load_draft(path, overrides)
    return [draft.chain.place(one).removeprefix(f"{path}: ") for one in draft_mistakes(draft)]


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["distill.max_steps=abc"], ["distill.max_steps=abc"]),
        (["seed=1", "data.padding={side: up}"], ["data.padding={side: up}"]),
        (["student.from_teacher.blocks[1]=x"], ["student.from_teacher.blocks[1]=x"]),
        (["distill.micro_batch_size=3", "seed=1"], ["distill.micro_batch_size=3"]),
        (["distill.global_batch_size=8", "distill.micro_batch_size=3"],) * 2,
        (["attention=flash", "precision=fp32"],) * 2,
        (["export=best"], ["export=best"]),
        (["distill={max_steps: 3}", "distill.max_steps=x"], ["distill.max_steps=x"]),
        (["distill.max_steps=x", "distill={max_steps: -3}"], ["distill={max_steps: -3}"]),
        ([f"seed={'x' * 200}"], [f"seed={'x' * 95} ..."]),
    ],
)
def test_a_mistake_says_which_override_it_is_of(path: Path, overrides: list[str], given: list[str]) -> None:
    (message,) = placed(path, *overrides)
    assert message.endswith(f" (given as {', '.join(given)})")


def test_a_mistake_of_the_file_is_of_no_override(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "seeed: 1\n", encoding="utf-8")
    assert placed(path, "distill.kl_weight=2") == ["seeed: unknown key; did you mean 'seed'?"]


def test_overrides_that_have_no_place_hide_nothing_and_say_nothing_else(path: Path) -> None:
    found = placed(path, "seed=x", "distill.max_steps", "data.train[3].path=y", "=", "name=[1,", "extends=z")
    starts = [
        "'distill.max_steps': an override",
        "'data.train[3].path=y': data",
        "'=': an",
        "'name=[1,': not",
        "'extends=z'",
    ]
    assert [
        one for one, start in zip(found, starts, strict=False) if not one.startswith(f"command line: {start}")
    ] == []
    assert found[len(starts) :] == ["seed: 'x': use a whole number, 0 or more (given as seed=x)"]


def test_references_that_lead_nowhere_hide_nothing_and_are_said_once(path: Path) -> None:
    found = placed(path, "seed=${a.b}", "replay.every_steps=${seed}", "distill.betas=[0.9, '${none}']", "precision=fp8")
    assert sorted(one.partition(" (given")[0] for one in found) == [
        "distill.betas[1]: ${none}: the recipe has no such key",
        "precision: 'fp8': use fp32, bf16 or fp16",
        "seed: ${a.b}: the recipe has no such key",
    ]


def test_a_key_that_is_given_beside_its_misspelling_is_looked_at(path: Path) -> None:
    found = placed(path, "distil={max_steps: 1}", "distill.micro_batch_size=3")
    assert [one.partition(": ")[0] for one in found] == ["distil", "distill"]


def test_several_rules_of_one_section_come_at_once(path: Path) -> None:
    found = mistakes(path, "distill.warmup_steps=9", "distill.micro_batch_tokens=64", "distill.micro_batch_size=3")
    assert [message for message in found if message.startswith("distill: ")] == [
        "distill: warmup_steps (9) must be smaller than max_steps (2)",
        "distill: give exactly one of micro_batch_size (examples) and micro_batch_tokens (padded tokens)",
        "distill: global_batch_size (4) must be a multiple of micro_batch_size (3)",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.global_batch_size=many", "distill.global_batch_size: "),  # no word of microbatches that do not fit
        ("distill.max_steps=x", "distill.max_steps: "),  # nor of the warm-up
        ("student.from_teacher.blocks=[0, x]", "student.from_teacher.blocks[1]: "),
        ("student.from_teacher.block=[0]", "student.from_teacher.block: unknown key; did you mean 'blocks'?"),
        ("distill.betas=[2, x]", "distill.betas[0]: "),
    ],
)
def test_what_follows_from_a_stand_in_is_not_said(path: Path, override: str, expected: str) -> None:
    found = mistakes(path, override, "distill.warmup_steps=1")
    assert found[0].startswith(expected)
    assert {message.split(":")[0].partition("[")[0] for message in found} == {expected.split(":")[0].partition("[")[0]}


def test_a_misspelt_key_does_not_make_its_own_absence_a_mistake(tmp_path: Path) -> None:
    content = recipe_dict(tmp_path)
    content["filter"] = content.pop("filters")
    content["distill"]["micro_batch_siez"] = content["distill"].pop("micro_batch_size")
    found = mistakes(write_recipe(tmp_path / "recipe.yaml", content))
    assert found == [
        "distill.micro_batch_siez: unknown key; did you mean 'micro_batch_size'?",
        "filter: unknown key; did you mean 'filters'?",
    ]


@pytest.mark.parametrize("left_out", ["teacher", "student", "data"])
def test_what_is_missing_has_a_stand_in(tmp_path: Path, left_out: str) -> None:
    content = recipe_dict(tmp_path)
    del content[left_out]
    draft = load_draft(write_recipe(tmp_path / "recipe.yaml", content), ["seed=-1"])
    assert sorted(draft_mistakes(draft)) == sorted(
        [f"{left_out}: this key is required", next(one for one in draft_mistakes(draft) if one.startswith("seed"))]
    )
    assert draft.recipe is not None


def test_an_unknown_kind_of_task_is_not_guessed(tmp_path: Path) -> None:
    content: dict[str, Any] = recipe_dict(tmp_path) | {"task": task_dict("regression") | {"kind": "regresion"}}
    draft = load_draft(write_recipe(tmp_path / "recipe.yaml", content), ["seed=-1"])
    assert not draft.knows_task
    assert {message.split(":")[0] for message in draft_mistakes(draft)} == {"task.kind", "seed"}


@pytest.mark.parametrize(
    ("stand_in", "message", "concerned"),
    [
        (("distill", "global_batch_size"), "recipe.yaml: distill.global_batch_size: 2 does not divide", True),
        (("distill", "global_batch_size"), "filters.teacher.global_batch_size: 2 does not divide", False),
        (("distill", "eps"), "distill: steps", False),
        (("distill", "eps"), "distill: eps", True),
        (("data", "train", 0, "path"), "data.train[0].path: ?: no such file", True),
        (("data", "train", 0, "path"), "data.train[1].path: x: no such file", False),
        (("task", "labels"), "data.train[0]: a.jsonl: row 1: label 'x' is unknown; use one of ['stand-in']", True),
        (("deepspeed",), "deepspeed: ?: no such DeepSpeed config", True),
        (("deepspeed",), "use zero1", False),
    ],
)
def test_messages_about_stand_ins_are_known(
    path: Path, stand_in: tuple[int | str, ...], message: str, concerned: bool
) -> None:
    draft = load_draft(path)
    draft.stand_ins.append(stand_in)
    assert draft.concerns_a_stand_in(message) is concerned
