"""Rows that Python hands to a run become a file, once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ted_ds.config.data import Source
from ted_ds.data.given_rows import FOLDER, forget_rows, keep_rows
from ted_ds.data.reading.listing import list_source, read_in_order
from ted_ds.errors import CheckpointError, DataError

ROWS = [{"text": f"ba {number} \u00fc", "label": number % 2} for number in range(5)]


def read(file):
    listing = list_source(Source(path=str(file)))
    return [one.row for one in read_in_order(listing, ["text", "label"], max_bytes=1000, report=pytest.fail)]


@pytest.mark.parametrize("make", [list, iter, Dataset.from_list], ids=["list", "iterator", "dataset"])
def test_rows_are_read_as_they_were_given(tmp_path, make):
    file, is_new = keep_rows(make(ROWS), tmp_path / "run", has_begun=False)
    assert is_new
    assert read(file) == ROWS


def test_the_same_rows_are_the_same_file(tmp_path):
    file, _ = keep_rows(ROWS, tmp_path, has_begun=False)
    before = file.stat().st_mtime_ns
    assert keep_rows(iter(ROWS), tmp_path, has_begun=True) == (file, False)
    assert file.stat().st_mtime_ns == before
    assert sorted(one.name for one in (tmp_path / FOLDER).iterdir()) == ["train.json", "train.jsonl"]


def test_a_dataset_is_known_by_its_fingerprint_and_else_by_its_rows(tmp_path):
    data = Dataset.from_list(ROWS)
    file, _ = keep_rows(data, tmp_path, has_begun=False)
    file.write_bytes(b"never read again")
    assert keep_rows(data, tmp_path, has_begun=True) == (file, False)
    shuffled = data.shuffle(seed=1)
    with pytest.raises(CheckpointError, match="other rows than those this run began with"):
        keep_rows(shuffled, tmp_path, has_begun=True)
    file, is_new = keep_rows(shuffled, tmp_path, has_begun=False)
    assert is_new
    assert read(file) == shuffled.to_list() != ROWS
    same = Dataset.from_list(shuffled.to_list())
    assert same._fingerprint != shuffled._fingerprint
    assert keep_rows(same, tmp_path, has_begun=True) == (file, False)


def test_names_of_a_datasets_labels_stay(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    file, _ = keep_rows(Dataset.from_list(ROWS, features=features), tmp_path, has_begun=False)
    (described,) = list_source(Source(path=str(file))).files
    assert dict(described.class_names) == {"label": ("no", "yes")}


def test_other_rows_are_refused_once_the_run_has_begun(tmp_path):
    file, _ = keep_rows(ROWS, tmp_path, has_begun=False)
    with pytest.raises(CheckpointError) as caught:
        keep_rows(ROWS[1:], tmp_path, has_begun=True)
    text = str(caught.value)
    assert text.startswith(f"train_data: other rows than those this run began with ({file}, SHA-256 ")
    assert text.endswith("give the same, or choose another output_dir")
    assert read(file) == ROWS
    assert read(keep_rows(ROWS[1:], tmp_path, has_begun=False)[0]) == ROWS[1:]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "train_data: no rows; give at least one (an iterator that was read before has none left: give a list, "),
        (Dataset.from_list([]), "train_data: a dataset without rows; give at least one"),
        (DatasetDict(a=Dataset.from_list(ROWS)), "train_data: a dataset of the splits a; give one of them"),
        (
            "train.csv",
            "train_data: a str: use a datasets.Dataset, or an iterable of rows, which are mappings of column ",
        ),
        (3, "train_data: a int: use a datasets.Dataset, or an iterable"),
        ([ROWS[0], "ba"], 'train_data: row 2 is a str: use a mapping of column to value, such as {"text": "..."}'),
        ([{"text": {1}}], "train_data: row 1: a set cannot be written down; use text, numbers, and lists of them"),
    ],
)
def test_what_are_no_rows_is_said_and_leaves_nothing(tmp_path, rows, text):
    with pytest.raises(DataError) as caught:
        keep_rows(rows, tmp_path, has_begun=False)
    assert str(caught.value).startswith(text)
    assert [*tmp_path.iterdir()] == []


def test_numbers_of_numpy_are_numbers(tmp_path):
    file, _ = keep_rows([{"text": "ba", "label": np.int64(3), "x": np.ones(2)}], tmp_path, has_begun=False)
    assert json.loads(file.read_text()) == {"text": "ba", "label": 3, "x": [1.0, 1.0]}


def test_a_damaged_note_is_said(tmp_path):
    file, _ = keep_rows(ROWS, tmp_path, has_begun=False)
    (file.parent / "train.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"train\.json: damaged"):
        keep_rows(ROWS, tmp_path, has_begun=True)


def test_rows_of_a_run_that_did_not_begin_are_removed(tmp_path):
    keep_rows(ROWS, tmp_path / "run", has_begun=False)
    forget_rows(tmp_path / "run")
    assert not (tmp_path / "run").exists()
