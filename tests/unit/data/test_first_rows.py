"""The first rows of a source, looked at without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from ted_ds.config.data import Source
from ted_ds.config.tasks import (
    CausalLm,
    MultiLabelClassification,
    Regression,
    SequenceClassification,
    SoftLabelClassification,
)
from ted_ds.data.first_rows import FirstRows, first_rows
from ted_ds.tasks.kind import kind_of
from tests.tiny import ROOT

LABELS = ["sad", "glad"]
ONE = SequenceClassification(kind="sequence_classification", labels=LABELS)
ROWS = [{"text": "w1 w2", "label": "sad"}, {"text": "w3", "label": "glad"}, {"text": "w4 w5 w6", "label": "sad"}]
SOFT = SoftLabelClassification(kind="soft_label_classification", labels=LABELS)
MANY = MultiLabelClassification(kind="multi_label_classification", labels=LABELS)
LM = CausalLm(kind="causal_lm", sequence_length=8)


def write(folder: Path, kind: str) -> Path:
    dataset = Dataset.from_list(ROWS)
    match kind:
        case "csv":
            dataset.to_csv(folder / "a.csv")
        case "jsonl":
            dataset.to_json(folder / "a.jsonl")
        case "json":
            dataset.to_json(folder / "a.json", lines=False)
        case "parquet":
            dataset.to_parquet(folder / "a.parquet")
        case _:
            dataset.save_to_disk(folder)
    return folder


def look(path: Path, task: Any = ONE, **settings: Any) -> FirstRows:
    return first_rows(Source(path=str(path)), kind_of(task), **settings)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "arrow"])
def test_the_first_rows_are_told_in_every_format(tmp_path: Path, kind: str) -> None:
    found = look(write(tmp_path / "data" if kind == "arrow" else tmp_path, kind))
    assert found.problems == () == found.bad_records
    assert (found.num_rows, found.types) == (3, (("text", "text"), ("label", "text")))
    assert (found.characters, found.labels) == ((2, 5, 8), (("sad", 2), ("glad", 1)))
    assert str(found) == (
        "1 file of split 'train'; first 3 rows: text (text), label (text); texts of 2 to 8 characters, median 5; "
        "labels sad 2, glad 1"
    )


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    assert look(write(tmp_path, "jsonl"), num_rows=2).num_rows == 2


def test_every_row_that_a_run_would_refuse_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nw1,sad\nw2,bad\nw3,mad\n")
    found = look(tmp_path)
    assert [problem.partition(";")[0] for problem in found.problems] == [
        f"{tmp_path}/a.csv: row 2: label 'bad' is unknown",
        f"{tmp_path}/a.csv: row 3: label 'mad' is unknown",
    ]
    assert found.num_rows == 3


def test_rows_that_a_run_would_skip_are_no_problem_while_there_are_others(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\nno JSON\n')
    found = look(tmp_path, LM)
    assert found.problems == ()
    assert [record.position for record in found.bad_records] == ["row 2"]
    assert "1 cannot be used, such as " in str(found)
    (tmp_path / "a.jsonl").write_text("no JSON\n")
    assert f"{tmp_path}/a.jsonl: row 1: not JSON in UTF-8" in look(tmp_path, LM).problems[0]


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (Regression(kind="regression", target_columns=["score"]), "no column 'score'; it has text, label"),
        (MultiLabelClassification(kind="multi_label_classification", labels=LABELS), "needs a list in column 'label'"),
        (LM.model_copy(update={"text_column": "content"}), "no column 'content'; it has text, label"),
    ],
)
def test_what_does_not_fit_the_task_is_a_problem(tmp_path: Path, task: Any, problem: str) -> None:
    assert problem in look(write(tmp_path, "parquet"), task).problems[0]


def test_what_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert look(tmp_path / "none.csv").problems == (f"{tmp_path}/none.csv: no such data file or folder",)
    (tmp_path / "a.parquet").write_bytes(b"no table")
    assert look(tmp_path).problems[0].startswith(f"{tmp_path}/a.parquet: cannot be read: ")
    (tmp_path / "a.parquet").write_bytes(b"")
    assert look(tmp_path).problems == (f"{tmp_path}: no rows; give at least one",)


def test_what_is_on_other_machines_or_large_is_not_read(tmp_path: Path) -> None:
    for path in ("s3://bucket/a.jsonl", "org/name"):
        assert str(first_rows(Source(path=path), kind_of(ONE))) == "not looked into: it is not on this machine"
    (tmp_path / "a.json").write_text("[" + " " * 2**22 + "]")
    assert look(tmp_path).not_read == "not looked into: a JSON array is read whole, and this one is large"


def test_rows_are_read_without_torch_and_datasets(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    code = (
        "import sys; from ted_ds.config.data import Source; from ted_ds.config.tasks import CausalLm; "
        "from ted_ds.data.first_rows import first_rows; from ted_ds.tasks.kind import kind_of\n"
        "task = kind_of(CausalLm(kind='causal_lm', sequence_length=8))\n"
        "for path in sys.argv[1:]: assert first_rows(Source(path=path), task).num_rows == 3\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet"), str(tmp_path / "saved")]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "text,label\n"), ("a.jsonl", "\n \n\n"), ("a.json", "[]"), ("a.tsv", "\n"), ("a.csv", "")],
)
def test_files_without_a_row_are_a_problem_unless_others_have_some(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    path = tmp_path / f"*{Path(name).suffix}"
    assert look(path).problems == (f"{path}: no rows; give at least one",)
    (tmp_path / f"b{Path(name).suffix}").write_text(
        '{"text": "w1", "label": "sad"}\n' if "json" in name else "text,label\nw1,sad\n".replace(",", "\t")
    )
    assert str(look(path)).startswith("2 files; first 1 row: ")


def test_a_table_without_a_row_is_a_problem(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "a.parquet")
    assert look(tmp_path).problems == (f"{tmp_path}: no rows; give at least one",)


@pytest.mark.parametrize(
    "task", [Regression(kind="regression", target_columns=["a"]), SOFT, MANY], ids=lambda task: task.kind
)
def test_rows_without_labels_are_told(tmp_path: Path, task: Any) -> None:
    key = "a" if task.kind == "regression" else "label"
    (tmp_path / "a.jsonl").write_text(f'{{"text": "w1", "{key}": null}}\n' * 2)
    assert str(look(tmp_path, task)).endswith("; all without a label")
    assert look(tmp_path, task).has_no_label
    assert not look(tmp_path, task, num_rows=2).has_no_label, "the next may have one"
    assert "label" not in str(look(tmp_path, LM)), "which has none"
    assert not look(tmp_path, LM).has_no_label
    value = {"regression": 1, "soft_label_classification": [0, 1]}.get(task.kind, ["sad"])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "w2", key: value}) + "\n")
    assert str(look(tmp_path, task)).endswith("; 2 without a label")
    assert not look(tmp_path, task).has_no_label
