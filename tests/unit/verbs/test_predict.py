"""``ted-ds predict``: what it says is what transformers makes of the run's own models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ted_ds.cli import main
from tests.tiny import LABELS, WORDS, write_model

TEXT = " ".join(WORDS[:4])
LABELLED = {"kind": "sequence_classification", "max_length": 16, "labels": list(LABELS), "text_column": "text"}
TASKS: dict[str, dict[str, Any]] = {
    "sequence_classification": LABELLED,
    "multi_label_classification": {**LABELLED, "kind": "multi_label_classification"},
    "regression": {"kind": "regression", "max_length": 16, "target_columns": list(LABELS), "text_column": "text"},
}


def write_run(folder: Path, task: dict[str, Any], models: dict[str, Path]) -> Path:
    (folder / "evaluate").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc"}))
    inputs = {"task": {"headline": None, **task}, "models": {name: {"path": str(at)} for name, at in models.items()}}
    (folder / "evaluate" / "phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    return folder


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    settings: dict[str, Any] = {"labels": LABELS, "initializer_range": 0.9, "max_position_embeddings": 32}
    return {
        name: write_model(folder / name.replace(" ", "_"), "bert", blocks=blocks, seed=seed, **settings)
        for name, blocks, seed in (("teacher", 2, 1), ("student after", 1, 2))
    }


def logits_of(folder: Path, *texts: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(
            **tokenizer(*texts, return_tensors="pt")
        ).logits[0]


@pytest.mark.parametrize("kind", TASKS)
def test_predictions_are_those_of_transformers(tmp_path, classifiers, capsys, kind):
    folder = write_run(tmp_path / "run", TASKS[kind], classifiers)
    capsys.readouterr()
    assert main(["predict", str(folder), TEXT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", TEXT]
    likeliest = []
    for line, (name, at) in zip(lines[2:4], classifiers.items(), strict=True):
        logits = logits_of(at, TEXT)
        if kind == "regression":
            expected = [f"{one} {value:.4g}" for one, value in zip(LABELS, logits.tolist(), strict=True)]
        else:
            shares = logits.softmax(0) if kind == "sequence_classification" else logits.sigmoid()
            ordered = sorted(zip(shares.tolist(), LABELS, strict=True), reverse=True)
            likeliest.append(ordered[0][1])
            expected = [f"{label} {share:.3f}" for share, label in ordered]
        assert line == f"  {name:14} {', '.join(expected)}"
    assert (lines[4:] == ["  they differ"]) == (len(set(likeliest)) > 1)


def test_lines_of_the_standard_input_and_pairs_are_read(tmp_path, classifiers, capsys, monkeypatch):
    folder = write_run(tmp_path / "run", LABELLED, {"student after": classifiers["student after"]})
    first, second = WORDS[0], " ".join(WORDS[1:3])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first}\t{second}\n\n{first}\n"))
    capsys.readouterr()
    assert main(["predict", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith("  ")] == [f"{first}\t{second}", first]
    best = float(logits_of(classifiers["student after"], first, second).softmax(0).max())
    assert f" {best:.3f}, " in lines[2]


def test_a_language_model_goes_on_with_a_text(tmp_path, capsys):
    at = write_model(tmp_path / "teacher", "llama", blocks=2, max_position_embeddings=64)
    folder = write_run(tmp_path / "run", {"kind": "causal_lm", "sequence_length": 16}, {"teacher": at})
    capsys.readouterr()
    assert main(["predict", str(folder), TEXT, "--tokens", "5"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(at)
    given = tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)
    model = AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32)
    written = model.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=0)[
        0, given["input_ids"].shape[1] :
    ]
    said = tokenizer.decode(written, skip_special_tokens=True).strip()
    assert capsys.readouterr().out == f"\n{TEXT}\n  {'teacher':14} {said}\n"


@pytest.mark.parametrize(
    ("task", "path", "says"),
    [
        (
            {"kind": "question_answering"},
            ".",
            "its task is question_answering, of which no single prediction",
        ),
        (LABELLED, "gone", "its teacher was at gone, where it is not seen from here; start this in the folder"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, capsys, task, path, says):
    folder = write_run(tmp_path / "run", task, {"teacher": Path(path)})
    assert main(["predict", str(folder), TEXT]) == 2
    assert says in capsys.readouterr().err


def test_a_run_that_is_not_complete_is_said(tmp_path, capsys):
    folder = write_run(tmp_path / "run", LABELLED, {})
    (folder / "evaluate" / "phase.json").unlink()
    assert main(["predict", str(folder), TEXT]) == 2
    assert f"{folder}: its models are not scored yet; start its run again" in capsys.readouterr().err
