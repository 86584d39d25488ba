"""``ted-ds init`` without words: what it asks in a terminal, what it says of answers, and that it asks nobody else."""

from __future__ import annotations

import io
import os
import sys

import pytest
import yaml

from ted_ds.cli import main
from ted_ds.errors import ConfigError
from ted_ds.verbs.init.questions import ask
from tests.terminals import on_terminal
from tests.tiny import ROOT, write_model, write_rows

ROWS = [{"text": f"the cat sat {row}", "label": row % 2} for row in range(40)]
ANSWERS = """none
~/bert

left.jsonl
none.jsonl
rows.jsonl
4
100%
many
75%
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_model(tmp_path / "bert", "bert", blocks=4, max_position_embeddings=128)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(tmp_path / "left.jsonl", [{"left": "the cat", "right": "sat"}])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_answers_are_looked_at_at_once_and_asked_for_again(place):
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT), "HOME": str(place)}
    said = on_terminal([sys.executable, "-m", "ted_ds", "init"], environment, typed=ANSWERS, columns=200)
    where = -1
    for line in (
        "teacher, a model folder [bert]: ",
        "  --teacher none: no such folder; init reads a model's files: give a local one",
        "  bert, 4 blocks of width 16",
        "data, a file or folder of texts, labelled or not, or chats [left.jsonl]: ",
        "  columns left, right: no task is known by these",
        "  none.jsonl: no such data file or folder",
        "  sequence_classification: 'text' and a label in 'label'",
        "student, as a share of the teacher's blocks or their number [50%]: ",
        "  --blocks 4: the teacher has 4 blocks; use 1 to 3",
        "  100%: use more than 0 and less than 100 percent, such as 50%",
        "  many: use more than 0 and less than 100 percent, such as 50%",
        "  3 of 4 blocks",
        "start it    ted-ds run recipe.yaml",
    ):
        assert said.find(line) > where, (line, said)
        where = said.find(line)
    values = yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))
    assert values["teacher"]["path"] == str(place / "bert")
    assert (values["data"]["train"], values["student"]["from_teacher"]) == (
        [{"path": "rows.jsonl"}],
        {"num_blocks": "75%"},
    )


def test_what_is_given_is_not_asked_for_and_enter_takes_the_rest(place, monkeypatch, capsys):
    (place / "left.jsonl").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    given, size = ask("bert", None, None)
    assert (given.teacher, given.data, given.form.task["kind"], size) == (
        "bert",
        "rows.jsonl",
        "sequence_classification",
        0.5,
    )
    assert "a model folder" not in capsys.readouterr().out


def test_a_folder_of_several_files_is_proposed_as_one(place, monkeypatch):
    for name in ("left.jsonl", "rows.jsonl"):
        (place / name).unlink()
    (place / "books").mkdir()
    for part in range(2):
        write_rows(place / "books" / f"part{part}.jsonl", ROWS)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n2\n"))
    given, size = ask(None, None, None)
    assert (given.teacher, given.data, size) == ("bert", "books", 2)


def test_answers_that_end_end_it(place, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("bert\n"))
    with pytest.raises(ConfigError, match=r"^no answer to: data, a file or folder of .*; nothing was written$"):
        ask(None, None, None)


@pytest.mark.parametrize(
    ("words", "missing"), [([], "--teacher, --data"), (["--teacher", "bert"], "--data"), (["--data", "d"], "--teacher")]
)
def test_nobody_is_asked_where_there_is_no_terminal(place, capsys, words, missing):
    with pytest.raises(SystemExit) as ended:
        main(["init", *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"ted-ds init: error: the following arguments are required: {missing}\n")
    assert not (place / "recipe.yaml").exists()
