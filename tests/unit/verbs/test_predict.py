"""``ted-ds predict``: what it says is what transformers makes of the run's own models."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
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
            None,
            "its task is question_answering, of which no single prediction",
        ),
        (LABELLED, "gone", "its teacher was at gone, where it is not seen from here; start this in the folder"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, classifiers, capsys, task, path, says):
    folder = write_run(tmp_path / "run", task, {"teacher": classifiers["teacher"] if path is None else Path(path)})
    assert main(["predict", str(folder), TEXT]) == 2
    assert says in capsys.readouterr().err


def test_a_run_that_is_not_complete_is_said(tmp_path, capsys):
    folder = write_run(tmp_path / "run", LABELLED, {})
    (folder / "evaluate" / "phase.json").unlink()
    assert main(["predict", str(folder), TEXT]) == 2
    assert f"{folder}: its models are not scored yet; start its run again" in capsys.readouterr().err


# --- which models are asked -------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path, classifiers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a run was started in, which is the working directory: ``runs/x`` holds all of its models."""
    start = tmp_path / "start"
    own = {"teacher": "finetune_teacher/model", "student after": "distill/model"}
    for name, place in own.items():
        shutil.copytree(classifiers[name], start / "runs/x" / place)
        (start / "runs/x" / place).with_name("phase.json").write_text('{"inputs": {}, "result": {}}')
    shutil.copytree(classifiers["student after"], start / "runs/x/export")
    write_run(start / "runs/x", LABELLED, {name: Path("runs/x") / place for name, place in own.items()})
    monkeypatch.chdir(start)
    return start


def note_start(run: Path, folder: Path) -> None:
    (run / "starts.jsonl").write_text(json.dumps({"ranks": 1, "folder": str(folder), "output_dir": "runs/x"}) + "\n")


def said_of(at: Path) -> str:
    ordered = sorted(zip(logits_of(at, TEXT).softmax(0).tolist(), LABELS, strict=True), reverse=True)
    return ", ".join(f"{label} {share:.3f}" for share, label in ordered)


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, str]:
    """What each model says, by its name."""
    capsys.readouterr()
    assert main(["predict", *map(str, words), TEXT]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "differ" not in line]
    return {line[2:16].strip(): line[17:] for line in lines}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 2
    return capsys.readouterr().err


def other_classifier(folder: Path, labels: list[str]) -> Path:
    settings: dict[str, Any] = {"labels": labels, "initializer_range": 0.9, "max_position_embeddings": 32}
    return write_model(folder, "bert", blocks=1, seed=9, **settings)


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "untold"])
def test_a_moved_run_answers_with_its_own_models_or_not_at_all(whole, capsys, is_told):
    run, moved = whole / "runs/x", whole / "moved"
    if is_told:
        note_start(run, whole)
    shutil.copytree(run, moved)
    shutil.rmtree(moved / "distill/model")
    other = other_classifier(moved / "distill/model", [*LABELS])
    expected = said_of(run / "finetune_teacher/model")
    assert asked(capsys, "moved") == {"teacher": expected, "student after": said_of(other)}
    shutil.rmtree(moved / "distill")
    assert f"moved: its student after is no more in it ({Path('moved/distill/model')})" in refused(
        capsys, "moved", TEXT
    )
    shutil.rmtree(moved / "finetune_teacher")
    assert "moved: its teacher is no more in it" in refused(capsys, "moved", TEXT)


def test_a_run_is_asked_from_anywhere(whole, capsys, monkeypatch, tmp_path):
    run = whole / "runs/x"
    expected = {"teacher": said_of(run / "finetune_teacher/model"), "student after": said_of(run / "distill/model")}
    for place in (tmp_path, run, run / "distill"):
        monkeypatch.chdir(place)
        assert asked(capsys, run) == expected
    monkeypatch.chdir(run)
    assert asked(capsys, ".") == expected


@pytest.mark.parametrize(("given", "name"), [("distill", "distill"), ("distill/model", "model"), ("export", "export")])
def test_any_model_of_a_run_is_asked_beside_the_teacher(whole, capsys, given, name):
    run = whole / "runs/x"
    expected = {"teacher": said_of(run / "finetune_teacher/model"), name: said_of(run / "export")}
    assert asked(capsys, run / given) == expected


def test_the_teacher_itself_is_asked_alone(whole, capsys):
    run = whole / "runs/x"
    capsys.readouterr()
    assert main(["predict", str(run / "finetune_teacher"), TEXT]) == 0
    assert capsys.readouterr().out == f"\n{TEXT}\n  finetune_teacher {said_of(run / 'finetune_teacher/model')}\n"


def test_an_export_is_asked_by_itself_and_beside_a_teacher_that_is_named(whole, capsys, classifiers, tmp_path):
    export = shutil.copytree(whole / "runs/x/export", tmp_path / "mine")
    assert asked(capsys, export) == {"mine": said_of(export)}
    of_teacher = said_of(classifiers["teacher"])
    assert asked(capsys, export, "--teacher", classifiers["teacher"]) == {
        "teacher": of_teacher,
        "mine": said_of(export),
    }
    assert asked(capsys, "runs/x", "--teacher", classifiers["student after"])["teacher"] == said_of(export)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"problem_type": "regression"}, lambda logits: [f"{value:.4g}" for value in logits.tolist()]),
        (
            {"problem_type": "multi_label_classification"},
            lambda logits: [f"{share:.3f}" for share in sorted(logits.sigmoid().tolist(), reverse=True)],
        ),
    ],
)
def test_what_the_outputs_of_an_export_are_is_told_by_its_config(tmp_path, capsys, settings, shown):
    at = write_model(tmp_path / "model", "bert", blocks=1, labels=[*LABELS], initializer_range=0.9, **settings)
    said = asked(capsys, at)["model"]
    assert [one.rpartition(" ")[2] for one in said.split(", ")] == shown(logits_of(at, TEXT))


def test_where_the_student_alone_was_scored_the_teacher_is_that_of_an_earlier_phase(whole, capsys, classifiers):
    run = whole / "runs/x"
    (whole / "teachers").mkdir()
    teacher = shutil.copytree(classifiers["teacher"], whole / "teachers/big")
    shutil.rmtree(run / "finetune_teacher")
    shutil.rmtree(run / "evaluate")
    write_phase(run / "evaluate", {"task": {"headline": None, **LABELLED}, "models": student("runs/x/distill/model")})
    write_phase(run / "cut_student", {"teacher": {"path": "teachers/big"}})
    expected = {"teacher": said_of(teacher), "student after": said_of(run / "distill/model")}
    assert asked(capsys, "runs/x") == expected
    assert [*asked(capsys, "runs/x/distill")] == ["teacher", "distill"]
    shutil.rmtree(teacher)
    assert "its teacher was at teachers/big, where it is not seen from here" in refused(capsys, "runs/x", TEXT)
    assert asked(capsys, "runs/x/distill") == {"distill": expected["student after"]}
    assert main(["predict", "runs/x/distill", TEXT]) == 0
    assert "or name a teacher with --teacher DIR; without it:" in capsys.readouterr().err


def write_phase(folder: Path, inputs: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "phase.json").write_text(json.dumps({"inputs": inputs, "result": {}}))


def student(path: str) -> dict[str, Any]:
    return {"student after": {"path": path}}


def test_what_has_no_model_is_said_once(whole, capsys, tmp_path):
    has = "phases of this run with a model: finetune_teacher, distill, export"
    assert refused(capsys, "runs/x/filters_both", TEXT).endswith(f"runs/x/filters_both: no such folder; {has}\n")
    nothing = "there is no model in it (no config.json, nor in a folder model)"
    assert refused(capsys, "runs/x/evaluate", TEXT).endswith(f"runs/x/evaluate: {nothing}; {has}\n")
    assert "nothere: no such folder; give the output_dir of a run, one of its phases" in refused(
        capsys, "nothere", TEXT
    )
    masked = write_model(tmp_path / "masked", "bert", blocks=1, architecture="MaskedLM")
    assert "masked: BertForMaskedLM has no single prediction for a text" in refused(capsys, masked, TEXT)
    said = refused(capsys, "runs/x", TEXT, "--teacher", masked)
    assert "BertForMaskedLM has no weights for" in said
    assert "so that what it says would be chance; give a model that was trained with them" in said
    more = other_classifier(tmp_path / "more", ["a", "b", "c", "d", "e", "f", "g"])
    assert f"has 7 outputs, the task has {len(LABELS)}" in refused(capsys, "runs/x", TEXT, "--teacher", more)


def test_a_text_that_is_empty_is_refused(whole, capsys):
    assert "text 2 of 2 is empty, and says nothing; give it words" in refused(capsys, "runs/x", TEXT, " ")
