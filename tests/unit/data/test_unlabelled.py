"""Labelled sets in which some rows, or all, have no label; texts with nothing in them; corpora of one document."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import CausalLm, MultiLabelClassification, Regression, SequenceClassification
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.rows import refuse_without_labels
from ted_ds.errors import DataError
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import SCORERS, labelled, make_guess
from tests.tiny import texts, write_rows, write_tokenizer

LABELS = ["sad", "glad"]
ONE = SequenceClassification(kind="sequence_classification", labels=LABELS)
MANY = MultiLabelClassification(kind="multi_label_classification", labels=LABELS)
NUMBER = Regression(kind="regression")


def open_rows(folder: Path, task: Any, train: list[Any], evaluation: list[Any], **data: Any) -> LabelledData:
    paths = [write_rows(folder / f"{name}.jsonl", rows) for name, rows in (("a", train), ("b", evaluation))]
    settings = Data(train=[Source(path=str(paths[0]))], evaluation=[Source(path=str(paths[1]))], **data)
    tokenizer = write_tokenizer(folder / "tokenizer")
    found = LabelledData(settings, kind_of(task), tokenizer, list_data(settings), max_heldout=9)
    refuse_without_labels(settings, ["distill"] if task is ONE else [], has_labels=found.has_labels)
    return found


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in zip(texts(len(labels)), labels, strict=True)]


@pytest.mark.parametrize(
    ("task", "label"), [(ONE, "glad"), (MANY, ["sad"]), (NUMBER, 2.5)], ids=lambda one: str(one)[:9]
)
def test_rows_without_a_label_are_kept_and_counted(tmp_path: Path, task: Any, label: Any) -> None:
    found = open_rows(tmp_path, task, rows_of([label, None, -100, label]), rows_of([label]))
    assert [sample.label is None for sample in found.train] == [False, True, True, False]
    assert found.describe(1) == "4 training examples, 2 of them without a label, held by every rank"
    batch = Collator(0, "class" if task is ONE else "numbers", num_outputs=task.num_outputs)(found.train)
    is_ignored = batch.labels == -100 if task is ONE else batch.labels.isnan().all(-1)
    assert is_ignored.tolist() == [False, True, True, False]
    assert batch.kept_tokens.any(-1).all()


def test_a_set_without_any_label_is_refused_where_labels_are_learned_from(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_rows(tmp_path, ONE, rows_of([None, -100]), rows_of(["sad"]))
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl: no row has a label, and distill would learn from labels; give some rows theirs, or leave "
        "these phases out and set distill.task_weight: 0"
    )
    assert open_rows(tmp_path, NUMBER, rows_of([None, -100]), rows_of([1.0])).num_unlabelled == 2


def test_a_held_out_set_without_any_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_rows(tmp_path, ONE, rows_of(["sad", "glad"]), rows_of([None, None]))
    assert str(caught.value) == (
        f"{tmp_path}/b.jsonl: no held-out row has a label to be scored by; give data.evaluation rows with labels"
    )


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
@pytest.mark.parametrize("limit", [0.5, 0.001])
def test_a_text_with_nothing_in_it_is_a_bad_record_with_its_place(tmp_path: Path, text: str, limit: float) -> None:
    rows = rows_of(["sad", "glad", "sad"])
    rows[1]["text"] = text
    fault = f"column 'text' holds {text!r}; there is nothing in it to predict from"
    if limit == 0.5:
        found = open_rows(tmp_path, ONE, rows, rows[:1], bad_records={"max_fraction": limit})
        assert [tuple(record) for record in found.bad_records] == [(f"{tmp_path}/a.jsonl", "row 2", fault)]
        assert [sample.label for sample in found.train] == [0, 0]
        assert [sample.index for sample in found.train] == [0, 1]
    else:
        with pytest.raises(DataError) as caught:
            open_rows(tmp_path, ONE, rows, rows[:1])
        assert str(caught.value).startswith(f"{tmp_path}/a.jsonl: row 2: {fault}. 1 of 4 records cannot be used, more ")


def test_a_text_of_which_no_token_is_made_is_a_bad_record_with_its_place(tmp_path: Path) -> None:
    rows = rows_of(["sad", "glad", "sad"])
    tokenizer = write_tokenizer(tmp_path / "tokenizer")

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, given: list[str], **settings: Any) -> Any:
            encoded = tokenizer(given, **settings)["input_ids"]
            return {
                "input_ids": [[] if text == rows[2]["text"] else ids for text, ids in zip(given, encoded, strict=True)]
            }

    path = write_rows(tmp_path / "a.jsonl", rows)
    data = Data(
        train=[Source(path=str(path))],
        evaluation=[Source(path=str(path))],
        bad_records={"max_fraction": 0.5},  # type: ignore[arg-type]
    )
    found = LabelledData(data, kind_of(ONE), Forgetful(), list_data(data), max_heldout=9)  # type: ignore[arg-type]
    assert [record.position for record in found.bad_records] == ["row 3", "row 3"]
    assert found.bad_records[0].fault.endswith("of which the tokenizer makes no token")
    assert len(found.train) == 2


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_of_rows_with_labels_alone() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    of_one, of_many = SCORERS["sequence_classification"], SCORERS["multi_label_classification"]
    single = of_one.score([of_one.observe(logits, labelled(torch.tensor([0, -100, 1])))])
    assert (single["num_examples"], single["accuracy"]) == (2, 1.0)
    labels = torch.tensor([[1.0, 0.0], [math.nan, math.nan], [1.0, 1.0]])
    many = of_many.score([of_many.observe(torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, -1.0]]), labelled(labels))])
    assert (many["num_examples"], many["exact_match"]) == (2, 0.5)


def test_the_scores_of_regression_are_over_the_targets_that_there_are() -> None:
    outputs = torch.tensor([[1.0, 5.0], [2.0, 7.0], [3.0, 9.0], [100.0, 100.0]])
    targets = torch.tensor([[1.5, math.nan], [2.5, 7.0], [3.5, 8.0], [math.nan, math.nan]])
    scorer = SCORERS["regression"]
    scores = scorer.score([scorer.observe(outputs, labelled(targets))])
    assert scores["num_examples"] == 3
    assert scores["loss"] == pytest.approx((3 * 0.25 + 0 + 1) / 5)
    assert scores["pearson"] == pytest.approx(1.0)
    guess = make_guess("regression", num_outputs=2, labels=targets[:3].tolist())
    assert guess.loss == pytest.approx((1 + 0 + 1 + 0.25 + 0.25) / 5)


# --- one document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("documents", "fraction"), [("file", 1e-9), ("block", 0.999999999), ("line", 1e-9)])
def test_one_document_cannot_be_split(tmp_path: Path, documents: Any, fraction: float) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(texts(50)))
    data = Data(train=[Source(path=str(path), documents=documents)], heldout_fraction=fraction)
    task = CausalLm(kind="causal_lm", sequence_length=8)
    with pytest.raises(DataError) as caught:
        CorpusData(data, task, write_tokenizer(tmp_path / "tokenizer"), list_data(data), max_heldout=9)
    assert str(caught.value) == (
        f"{path}: this is one document of {path.stat().st_size:,} characters, which cannot be both trained on and held "
        "out; cut it (of a text file, documents: block or line makes many), or give data.validation"
    )


def test_of_several_documents_each_in_a_file_none_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_text(" ".join(texts(50)))
    data = Data(train=[Source(path=str(path), documents="file") for path in paths], heldout_fraction=1e-9)
    task = CausalLm(kind="causal_lm", sequence_length=8)
    with pytest.raises(DataError, match=r"no held-out rows to evaluate on; raise data\.heldout_fraction"):
        CorpusData(data, task, write_tokenizer(tmp_path / "tokenizer"), list_data(data), max_heldout=9)
