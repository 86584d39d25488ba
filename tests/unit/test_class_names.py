"""Names that data declare for their ids are read wherever they stand, and the labels follow them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import MultiLabelClassification, SequenceClassification
from ted_ds.data.class_names import names_in_features
from ted_ds.data.reading.listing import list_data, list_source
from ted_ds.data.tasks import LabelledData
from ted_ds.errors import DataError
from tests.tiny import WORDS, write_tokenizer

NAMES = ["glad", "sad", "mad"]
TASK = SequenceClassification(kind="sequence_classification", labels=["sad", "mad", "glad"])
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=NAMES), "tags": List(ClassLabel(names=NAMES))})
ROWS = [{"text": " ".join(WORDS[i : i + 3]), "label": i % 3, "tags": [i % 3, (i + 1) % 3]} for i in range(30)]
CARD = """---
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': glad
          '1': sad
          '2': mad
  - name: tags
    list:
      class_label:
        names: [glad, sad, mad]
---
"""
INFOS = {"org--name": {"features": FEATURES.to_dict()}}


def write(folder: Path, where: str) -> Path:
    """The rows, with the names of their ids declared somewhere."""
    dataset = Dataset.from_list(ROWS, features=FEATURES)
    plain = Dataset.from_list(ROWS)
    folder.mkdir(exist_ok=True)
    match where:
        case "parquet":
            dataset.to_parquet(folder / "a.parquet")
        case "saved":
            dataset.save_to_disk(folder)
        case "saved splits":
            DatasetDict({"train": dataset}).save_to_disk(folder)
        case "card":
            plain.to_json(folder / "a.jsonl")
            (folder / "README.md").write_text(CARD)
        case "infos":
            plain.to_parquet(folder / "a.parquet")
            (folder / "dataset_infos.json").write_text(json.dumps(INFOS))
        case "card beside csv":
            plain.remove_columns("tags").to_csv(folder / "a.csv")
            (folder / "README.md").write_text(CARD)
    return folder


def labels_of(folder: Path, task: Any, tokenizer: Path) -> dict[str, Any]:
    source = Source(path=str(folder))
    data = Data(train=[source], evaluation=[source])
    found = LabelledData(data, task, write_tokenizer(tokenizer), list_data(data), max_heldout=1)
    return {row["text"]: sample.label for row, sample in zip(ROWS, found.train, strict=True)}


PLACES = ("parquet", "saved", "saved splits", "card", "infos", "card beside csv")


@pytest.mark.parametrize("where", PLACES)
def test_a_label_is_the_name_that_its_data_declare(tmp_path: Path, where: str) -> None:
    found = labels_of(write(tmp_path / "data", where), TASK, tmp_path)
    assert found == {row["text"]: TASK.labels.index(NAMES[row["label"]]) for row in ROWS}


@pytest.mark.parametrize("where", [place for place in PLACES if place != "card beside csv"])
def test_ids_in_lists_are_the_names_that_their_data_declare(tmp_path: Path, where: str) -> None:
    task = MultiLabelClassification(kind="multi_label_classification", labels=TASK.labels, label_column="tags")
    found = labels_of(write(tmp_path / "data", where), task, tmp_path)
    assert found == {
        row["text"]: [float(name in {NAMES[tag] for tag in row["tags"]}) for name in task.labels] for row in ROWS
    }


def test_files_of_one_source_may_declare_other_orders(tmp_path: Path) -> None:
    for name, names in (("a", ["sad", "glad"]), ("b", ["glad", "sad"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        Dataset.from_list([{"text": "ba", "label": 0}], features=features).to_parquet(tmp_path / f"{name}.parquet")
    source = Source(path=str(tmp_path / "*.parquet"))
    data = Data(train=[source], evaluation=[source])
    found = LabelledData(data, TASK, write_tokenizer(tmp_path), list_data(data), max_heldout=1)
    assert [TASK.labels[sample.label] for sample in found.train] == ["sad", "glad"]  # type: ignore[index]


def test_a_file_that_disagrees_with_its_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", "parquet")
    (tmp_path / "data/README.md").write_text(CARD.replace("'0': glad", "'0': sad").replace("'1': sad", "'1': glad"))
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path / "data")))
    assert str(caught.value) == (
        f"{tmp_path}/data/a.parquet: cannot be read: column 'label': its own label names are ['glad', 'sad', 'mad'], "
        "those of its dataset ['sad', 'glad', 'mad']; write it anew, or give the file itself as path"
    )


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"a": {"names": ["x", "y"], "_type": "ClassLabel"}}, {"a": ("x", "y")}),
        ({"a": {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "Sequence"}}, {"a": ("x", "y")}),
        ({"a": [{"names": ["x", "y"], "_type": "ClassLabel"}]}, {"a": ("x", "y")}),
        ([{"name": "a", "sequence": {"class_label": {"names": {"0": "x", "1": "y"}}}}], {"a": ("x", "y")}),
        ({"a": {"dtype": "int64", "_type": "Value"}}, {}),
        # such names say no more than the ids
        ({"a": {"names": ["0", "1"], "_type": "ClassLabel"}}, {}),
        ({"a": {"names": ["LABEL_0", "LABEL_1"], "_type": "ClassLabel"}}, {}),
        ({"a": {"names": ["1", "0"], "_type": "ClassLabel"}}, {"a": ("1", "0")}),
        (None, {}),
        ("text", {}),
    ],
)
def test_names_are_found_in_every_way_to_write_features(features: Any, expected: Any) -> None:
    assert names_in_features(features) == expected
