"""``ted-ds check --show``: what is printed is the same recipe again, and says of each value where it is from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ted_ds.cli import main
from ted_ds.config.load import load_draft, load_recipe
from ted_ds.config.yaml_lines import lines_of
from ted_ds.planning.plan import Plan
from ted_ds.planning.shipped_deepspeed import is_open
from ted_ds.verbs.shown_recipe import SAID_BY_SILENCE, shown_recipe
from tests.tiny import ROOT, task_dict, write_recipe, write_run

SHIPPED = sorted(file for file in (ROOT / "ds_configs" / "recipes").rglob("*.yaml") if file.stem != "base")
KINDS = ["sequence_classification", "regression", "question_answering", "token_classification", "causal_lm", "seq2seq"]


def shown(recipe: Path, *overrides: str) -> str:
    """What is printed while no model is known."""
    draft = load_draft(recipe, overrides)
    assert draft.recipe is not None
    plan = Plan((), None, None, (), 0, {}, {}, chain=draft.chain, reasons=draft.reasons)
    return shown_recipe(draft.recipe, replace(plan, chooses_deepspeed=is_open(draft.recipe)), num_ranks=1)


def comments(text: str, key: str) -> list[str]:
    return re.findall(rf"^ *(?:- |# )*{key}: .*?  # (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda file: file.stem)
def test_a_recipe_that_ships_is_the_same_again(tmp_path: Path, recipe: Path) -> None:
    text = shown(recipe)
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    again, before = load_recipe(tmp_path / "again.yaml"), load_recipe(recipe)
    assert again == before
    for one, other in zip(again.phase_plans().values(), before.phase_plans().values(), strict=True):
        silent = {*SAID_BY_SILENCE}
        assert one.model_fields_set & silent == other.model_fields_set & silent
    assert again.student.calibration.are_given == before.student.calibration.are_given
    lines = [line for line in text.splitlines()[2:] if not line.rstrip().endswith((":", "{}"))]
    assert all("  # " in line for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_so_is_one_that_says_little(tmp_path: Path, kind: str) -> None:
    values = {
        "task": task_dict(kind),
        "data": {"train": [{"path": "rows.jsonl"}], "apart": {"no": [{"path": "x.csv", "delimiter": "\t"}]}},
        "teacher": {"path": "t"},
        "student": {"from_teacher": {"num_blocks": "half"}, "heal": {}},
        "distill": {"max_steps": 9},
    }
    recipe = write_recipe(tmp_path / "r.yaml", values)
    text = shown(recipe)
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(recipe)
    assert comments(text, "deepspeed") == [
        "default: one of those that ship; chosen by a run, once both models are known"
    ]


def test_each_value_says_where_it_is_from(tmp_path: Path, capsys, monkeypatch) -> None:
    run = write_run(tmp_path, kind="sequence_classification").parent
    monkeypatch.chdir(tmp_path)
    (run / "small.yaml").write_text(
        "extends: recipe.yaml\n"
        "constants: {rate: 3e-4}\n"
        "student:\n  from_teacher: {blocks: null, num_blocks: quarter}\n"
        "teacher: {path: ./teacher}\n"
        "distill:\n  # its own\n  learning_rate: ${constants.rate}\n  max_steps: null\n"
        "filters: null\n"
    )
    overrides = ["student.calibration={tokens: 64}", "seed=3", "distill.epochs=2"]
    assert main(["check", "small.yaml", *overrides, "--ranks", "2", "--show"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# small.yaml extends recipe.yaml, as it runs on 2 ranks; paths are from the ")
    assert comments(text, "num_blocks") == ["small.yaml:4; 1 of 4"]
    assert comments(text, "seed") == ["command line"]
    assert comments(text, "tokens") == ["command line"]
    assert comments(text, "heldout_tokens") == ["default"]
    assert comments(text, "temperature") == ["default"]
    assert comments(text, "learning_rate")[-1] == "small.yaml:8"
    assert "  learning_rate: 0.0003  # " in text
    assert re.fullmatch(r"command line; \d+ steps", comments(text, "epochs")[-1])
    assert comments(text, "initialisation") == ["default: solved in closed form"]
    lines = (run / "recipe.yaml").read_text().splitlines()
    (file, number) = comments(text, "preflight")[0].split(":")
    assert (file, lines[int(number) - 1]) == ("recipe.yaml", "preflight: warn")
    assert "path: ./teacher  # small.yaml:5 says ./teacher, from its folder" in text


def test_a_share_is_said_of_each_stack_and_paths_of_their_folder(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path, kind="seq2seq").parent
    assert main(["check", str(run / "recipe.yaml"), "student.from_teacher={num_blocks: half}", "--show"]) == 0
    assert comments(capsys.readouterr().out, "num_blocks") == ["command line; 2 of 4 encoder and 2 of 3 decoder"]


def test_mistakes_come_first(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path).parent
    assert main(["check", str(run / "recipe.yaml"), "seed=-1", "--show"]) == 2
    assert capsys.readouterr().out == ""


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "base: &base\n  a: 1\n  b: 2\nlist:\n  - x: 1\n  - {y: 2}\nown:\n  <<: *base\n  b: 3\nalias: *base\n"
    )
    found = lines_of(file)
    assert {key: found[key] for key in ("base.b", "list[1].y", "own.b", "own.a", "alias", "alias.a")} == {
        "base.b": 3,
        "list[1].y": 6,
        "own.b": 9,
        "own.a": 2,
        "alias": 10,
        "alias.a": 2,
    }


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path).parent
    assert "secret" not in shown(run / "recipe.yaml", "data.train[0].path=https://me:secret@host/x.jsonl?token=secret")
