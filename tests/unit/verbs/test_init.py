"""``ted-ds init``: what it makes of teachers and data passes ``check``, and what it cannot make out it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.config.load import load_recipe
from ted_ds.verbs.init import writing
from ted_ds.verbs.init.forms import NoForm, form_of
from tests.first_recipes import CASES, write_place
from tests.task_kinds import plan_recipe
from tests.tiny import ROOT, write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(("teacher", "data", "task"), CASES)
@pytest.mark.parametrize("method", ["kd", "ted"])
def test_what_it_writes_passes_check(place, tmp_path, capsys, method, teacher, data, task):
    words = ["--teacher", str(place / teacher), "--data", str(place / f"{data}.jsonl"), "--method", method]
    out = tmp_path / "mine.yaml"
    assert main(["init", *words, "--out", str(out)]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"start it    ted-ds run {out}" in said
    values = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert {key: values["task"][key] for key in task} == task
    assert ("finetune" in values["teacher"]) == (data not in ("documents", "targets") or teacher == "body")
    recipe = load_recipe(str(out))
    assert (recipe.name, recipe.distill.method) == ("mine", method)
    assert values["student"]["from_teacher"] == {"num_blocks": "half"}
    assert len(out.read_text(encoding="utf-8").splitlines()) <= 28


@pytest.mark.parametrize(
    ("words", "blocks"), [(["--blocks", "3"], 3), (["--size", "25%"], "25%"), (["--size", "75"], "75%"), ([], "half")]
)
def test_the_student_has_as_many_blocks_as_are_asked_for(place, tmp_path, words, blocks):
    out = tmp_path / "r.yaml"
    begun = ["init", "--teacher", str(place / "bert"), "--data", str(place / "labels.jsonl"), "--out", str(out)]
    assert main([*begun, *words]) == 0
    assert yaml.safe_load(out.read_text())["student"]["from_teacher"] == {"num_blocks": blocks}


@pytest.mark.parametrize("ranks", [1, 3, 8, 64])
def test_batches_go_with_the_ranks(place, tmp_path, ranks):
    out = tmp_path / "r.yaml"
    words = ["--teacher", str(place / "bert"), "--data", str(place / "labels.jsonl"), "--ranks", str(ranks)]
    assert main(["init", *words, "--out", str(out)]) == 0
    recipe, _ = plan_recipe(str(out), (), num_ranks=ranks)
    plan = recipe.distill
    assert plan.micro_batch_size is not None
    assert plan.global_batch_size % (plan.micro_batch_size * ranks) == 0


def test_names_that_the_data_declare_are_taken():
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert form_of(rows, "MaskedLM", {"label": ("no", "yes")}).task["labels"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"id": "a7", "text": "a", "label": 1}, "text"),
        ({"idx": "7", "sentence1": "a", "sentence2": "b", "label": 1}, ["sentence1", "sentence2"]),
        ({"remark": "a", "label": 1}, "remark"),
    ],
)
def test_a_name_says_which_columns_are_read(row, columns):
    assert form_of([row, {**row, "label": 0}], "MaskedLM", {}).task["text_column"] == columns


def test_two_texts_of_which_none_is_known_are_no_form():
    with pytest.raises(NoForm, match=r"columns left, right, label: no task is known by these"):
        form_of([{"left": "a", "right": "b", "label": 0}, {"left": "a", "right": "b", "label": 1}], "MaskedLM", {})


def test_answers_that_are_not_there_are_an_answer():
    rows = [{"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}]
    assert form_of(rows, "MaskedLM", {}).task == {"kind": "question_answering", "no_answer": True}


@pytest.mark.parametrize(
    ("teacher", "data", "says"),
    [
        (
            "none",
            "labels.jsonl",
            "--teacher {place}/none: no such folder; init reads a model's files",
        ),
        ("bert", "none.jsonl", "{place}/none.jsonl: no such data file or folder"),
        (
            "bert",
            "unknown.jsonl",
            "columns left, right: no task is known by these; call the",
        ),
        (
            "llama",
            "chats.jsonl",
            "the recipe that would be written: task.chat_template: the teacher's",
        ),
    ],
)
def test_what_cannot_be_checked_is_not_written(place, tmp_path, capsys, teacher, data, says):
    out = tmp_path / "r.yaml"
    assert main(["init", "--teacher", str(place / teacher), "--data", str(place / data), "--out", str(out)]) == 2
    assert says.format(place=place) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_there_stays(place, tmp_path, capsys):
    out = tmp_path / "r.yaml"
    out.write_text("mine")
    assert (
        main(["init", "--teacher", str(place / "bert"), "--data", str(place / "labels.jsonl"), "--out", str(out)]) == 2
    )
    assert out.read_text() == "mine"
    assert capsys.readouterr().err.endswith(f"--out {out}: is there already; give another name, or remove it\n")


@pytest.mark.parametrize("words", ["--blocks 4", "--blocks 0", "--size 0%", "--size 100%", "--blocks 1 --size 5%"])
def test_sizes_that_are_none_are_refused(place, tmp_path, words):
    out = tmp_path / "r.yaml"
    begun = ["init", "--teacher", str(place / "bert"), "--data", str(place / "labels.jsonl"), "--out", str(out)]
    try:
        code = main([*begun, *words.split()])
    except SystemExit as error:  # argparse
        code = error.code
    assert (code, out.exists()) == (2, False)


def test_a_teacher_that_knows_the_labels_is_taken_as_it_is(place, tmp_path):
    write_model(tmp_path / "teacher", "bert", blocks=4, labels=("bad", "good"), max_position_embeddings=128)
    out = tmp_path / "r.yaml"
    words = ["--teacher", str(tmp_path / "teacher"), "--data", str(place / "labels.jsonl"), "--out", str(out)]
    assert main(["init", *words]) == 0
    assert "finetune" not in yaml.safe_load(out.read_text())["teacher"]


def test_paths_are_as_they_are_seen_from_the_recipe(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "place").symlink_to(place)
    (tmp_path / "work").mkdir()
    words = ["--teacher", "./place/bert", "--data", "./place/labels.jsonl"]
    assert main(["init", *words, "--out", "work/r.yaml"]) == 0
    values = yaml.safe_load((tmp_path / "work" / "r.yaml").read_text())
    assert values["teacher"]["path"] == "place/bert"  # from the working directory
    assert main(["check", "work/r.yaml"]) == 0
    monkeypatch.chdir(tmp_path / "work")
    words = ["--teacher", "../place/bert", "--data", "../place/labels.jsonl"]
    assert main(["init", *words, "--out", "own/r.yaml"]) == 0
    assert yaml.safe_load(Path("own/r.yaml").read_text())["teacher"]["path"] == "../../place/bert"
    monkeypatch.chdir("/")
    assert main(["check", str(tmp_path / "work" / "own" / "r.yaml")]) == 0


def test_editors_are_told_of_a_schema_that_is_beside_or_below_and_else_of_how_it_is_made(place, tmp_path):
    words = ["--teacher", str(place / "bert"), "--data", str(place / "labels.jsonl")]
    command = "ted-ds schema > recipe.schema.json"
    modeline = "# yaml-language-server: $schema="
    assert main(["init", *words, "--out", str(tmp_path / "r.yaml")]) == 0
    first = (tmp_path / "r.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert not first.startswith(modeline), "an editor would look for what is not there"
    assert f"{command}; then begin with {modeline}recipe.schema.json" in first
    (tmp_path / "recipe.schema.json").write_text("{}")
    assert main(["init", *words, "--out", str(tmp_path / "s.yaml")]) == 0
    assert (tmp_path / "s.yaml").read_text(encoding="utf-8").splitlines()[0] == f"{modeline}recipe.schema.json"
    assert writing._for_editors(ROOT) == f"{modeline}ds_configs/recipe.schema.json"


@pytest.mark.parametrize(("teacher", "data", "_"), CASES)
def test_each_line_has_its_reason(place, tmp_path, teacher, data, _):
    out = tmp_path / "r.yaml"
    words = ["--teacher", str(place / teacher), "--data", str(place / f"{data}.jsonl"), "--method", "ted"]
    assert main(["init", *words, "--out", str(out)]) == 0
    lines = out.read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if "#" not in line]
    assert bare == ["task:", "data:", "teacher:", "student:", "distill:"]
