"""``ted-ds chat``: what it says is what transformers makes of the conversation, in a terminal and without one."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ted_ds.cli import main
from ted_ds.verbs.chat import COMMAND
from tests.terminals import on_terminal
from tests.tiny import ROOT, WORDS, write_model

TEXT = " ".join(WORDS[:4])
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
TOKENS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher without a template, and a student that has one, in a phase's folder."""
    folder = tmp_path_factory.mktemp("chat") / "run"
    teacher = write_model(folder.parent / "teacher", "llama", blocks=2, seed=1, max_position_embeddings=64)
    student = write_model(folder / "distill" / "model", "llama", blocks=1, seed=2, max_position_embeddings=20)
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(student)
    (folder / "evaluate").mkdir()
    (folder / "run.json").write_text(json.dumps({"run_id": "abc"}))
    models = {name: {"path": str(at)} for name, at in (("teacher", teacher), ("student after", student))}
    inputs: dict[str, Any] = {"task": {"kind": "chat"}, "models": models}
    (folder / "evaluate" / "phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    return folder


def written(folder: Path, text: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).generate(
            **given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
    return tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_a_text_of_the_standard_input_is_answered_once_by_both(run, capsys, monkeypatch):
    teacher, student = run.parent / "teacher", run / "distill" / "model"
    said = f"teacher:\n{written(teacher, TEXT)}\n\n{{}}:\n{written(student, f'{TEXT} ')}\n\n"
    for folder, name in ((run, "student after"), (run / "distill", "distill"), (student, "model")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXT}\n"))
        capsys.readouterr()
        assert main(["chat", str(folder), "--tokens", str(TOKENS)]) == 0
        assert capsys.readouterr().out == said.format(name)


def test_a_conversation_goes_on_in_a_terminal_as_far_as_there_are_positions(run):
    command = [sys.executable, "-m", "ted_ds", "chat", str(run / "distill" / "model"), "--tokens", str(TOKENS)]
    typed = f"{TEXT}\n{WORDS[5]}\n/new\n/help me\n {WORDS[6]}\n{' '.join(WORDS[:18])}\n\x04"
    found = on_terminal(command, {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)}, typed=typed)
    student = run / "distill" / "model"
    first = written(student, f"{TEXT} ")
    second = written(student, f"{TEXT} {first} {WORDS[5]} ")
    shown = found.replace("\r\n", "\n")
    answers = [part.partition("\n")[2].partition("\n\n")[0].strip() for part in shown.split("\nmodel:")[1:]]
    assert f"model ({student}) answers\n" in shown
    assert f"teacher ({run.parent / 'teacher'}) has no chat template: it goes on with each text by itself" in shown
    commands = "/new forgets the conversation, Ctrl-D ends"
    assert f"there is no /help; {commands}; a text that begins so is sent with a blank before it\n" in shown
    assert answers[:3] == [first, second, written(student, f"{WORDS[6]} ")]
    assert "18 tokens and 5 more (--tokens) are beyond the model's 20 positions; give a shorter text" in shown


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda at: write_model(at, "bert", blocks=1, labels=["a", "b"]),
            "is no causal language model and writes no text",
        ),
        (lambda at: at.mkdir(), "no run began in this folder (it has no run.json), and there is no model in it"),
        (lambda at: (at.mkdir(), (at / "adapter_config.json").touch()), "an adapter without its model; give the whole"),
    ],
)
def test_what_cannot_talk_is_said(tmp_path, capsys, monkeypatch, make, says):
    make(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(["chat", str(tmp_path / "model")]) == 2
    assert says in capsys.readouterr().err


def test_an_empty_text_is_said(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["chat", str(run)]) == 2
    assert "the standard input has no text; give one, or start this in a terminal" in capsys.readouterr().err


def test_a_moved_run_talks_with_its_own_student_or_not_at_all(run, capsys, monkeypatch, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "starts.jsonl").write_text(json.dumps({"folder": "/start", "output_dir": str(run)}) + "\n")
    other = write_model(tmp_path / "other", "llama", blocks=1, seed=3, max_position_embeddings=64)
    shutil.rmtree(moved / "distill" / "model")
    shutil.copytree(other, moved / "distill" / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert main(["chat", str(moved), "--tokens", str(TOKENS)]) == 0
    assert f"student after:\n{written(other, TEXT)}\n" in capsys.readouterr().out
    shutil.rmtree(moved / "distill")
    assert main(["chat", str(moved)]) == 2
    assert f"{moved}: its student after is no more in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "is_command"), [("/help", True), ("/new x", True), ("/etc/hosts", False), ("/ a", False)]
)
def test_a_command_is_a_word_behind_a_stroke(text, is_command):
    assert bool(COMMAND.match(text)) == is_command
