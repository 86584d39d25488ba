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
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data, list_source
from ted_ds.errors import DataError
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import read_label
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
TEN = tuple(f"n{number}" for number in range(1, 10))
IDS = {str(number): name for number, name in enumerate(TEN, start=1)}
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
    found = LabelledData(data, kind_of(task), write_tokenizer(tokenizer), list_data(data), max_heldout=1)
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
    found = LabelledData(data, kind_of(TASK), write_tokenizer(tmp_path), list_data(data), max_heldout=1)
    assert [TASK.labels[sample.label] for sample in found.train] == ["sad", "glad"]  # type: ignore[index]


def test_a_file_that_disagrees_with_its_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", "parquet")
    (tmp_path / "data/README.md").write_text(CARD.replace("'0': glad", "'0': sad").replace("'1': sad", "'1': glad"))
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path / "data")))
    assert str(caught.value) == (
        f"{tmp_path}/data/a.parquet: cannot be read: column 'label': its own label names are ['glad', 'sad', 'mad'], "
        "those of its dataset ['sad', 'glad', 'mad']; write it anew, or mend what its folder's README.md or "
        "dataset_infos.json declare"
    )


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"a": {"names": ["x", "y"], "_type": "ClassLabel"}}, {"a": ("x", "y")}),
        ({"a": {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "Sequence"}}, {"a": ("x", "y")}),
        ({"a": [{"names": ["x", "y"], "_type": "ClassLabel"}]}, {"a": ("x", "y")}),
        ([{"name": "a", "sequence": {"class_label": {"names": {"0": "x", "1": "y"}}}}], {"a": ("x", "y")}),
        ({"a": {"dtype": "int64", "_type": "Value"}}, {}),
        ({"a": {"names": ["LABEL_0", "LABEL_1"], "_type": "ClassLabel"}}, {"a": ("LABEL_0", "LABEL_1")}),
        # ids in any order, as YAML sorts them as text
        ([{"name": "a", "dtype": {"class_label": {"names": {"0": "x", "10": "z", **IDS}}}}], {"a": ("x", *TEN, "z")}),
        ({"a": {"class_label": {"names": {1: "y", 0: "x"}}}}, {"a": ("x", "y")}),
        ({"a": {"names": ["1", "0"], "_type": "ClassLabel"}}, {"a": ("1", "0")}),
        (None, {}),
        ("text", {}),
    ],
)
def test_names_are_found_in_every_way_to_write_features(features: Any, expected: Any) -> None:
    assert names_in_features(features) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{'0': x, '2': y}", "their ids are 0, 2; give every id from 0 to 1 once"),
        ("{0: x, '0': y}", "their ids are 0, 0; give every id from 0 to 1 once"),
        ("{a: x, b: y}", "their ids are a, b; give every id from 0 to 1 once"),
        ("{-1: x, 0: y}", "their ids are -1, 0; give every id from 0 to 1 once"),
        ("3", "3 is no list of names, nor a mapping of ids to names; give one"),
        ("glad", "'glad' is no list of names, nor a mapping of ids to names; give one"),
        ("[no, yes]", "False is no text; give each name as text, in YAML within quotes"),
        ("{0: , 1: x}", "None is no text; give each name as text, in YAML within quotes"),
        ("[x, y, x]", "'x' is the name of more than one id; give each id a name of its own"),
    ],
)
def test_names_that_are_none_for_every_id_are_refused(tmp_path: Path, names: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "README.md").write_text(
        f"---\ndataset_info:\n  features:\n  - name: label\n    dtype: {{class_label: {{names: {names}}}}}\n---\n"
    )
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}/README.md: column 'label': names: {message}"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("dataset_info: foo", "dataset_info: 'foo' is no mapping; give one with features, or remove it"),
        ("dataset_info: [3]", "dataset_info: 3 is no mapping; give one with features, or remove it"),
        ("dataset_info: {features: text}", "features: 'text' is no list of columns; give one, or remove it"),
        ("configs: default", "configs: 'default' is no list; give one, each with a config_name"),
        ("configs: {config_name: a}", "configs: {'config_name': 'a'} is no list; give one, each with a config_name"),
        ("configs: [default]", "configs: 'default' has no config_name; give each one"),
    ],
)
def test_a_card_that_cannot_be_understood_is_refused_by_its_name(tmp_path: Path, card: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}/README.md: {message}"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("path", ["", "data", "data/a.jsonl", "data/*.jsonl", "*/a.jsonl"])
def test_the_card_above_files_holds_for_them(tmp_path: Path, path: str, mark: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "README.md").write_text(mark + CARD)
    file = list_source(Source(path=str(tmp_path / path))).files[0]
    assert dict(file.class_names) == {"label": tuple(NAMES), "tags": tuple(NAMES)}


def test_the_card_beside_a_file_comes_before_the_one_above(tmp_path: Path) -> None:
    for folder, first in ((tmp_path, "other"), (tmp_path / "a", "glad"), (tmp_path / "b", "mild")):
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text(CARD.replace("'0': glad", f"'0': {first}"))
        (folder / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    files = list_source(Source(path=str(tmp_path / "*/a.jsonl"))).files
    assert [dict(file.class_names)["label"][0] for file in files] == ["glad", "mild"]


def test_a_file_of_configurations_that_disagree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    infos = {
        name: {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
        for name, names in (("default", ["x", "y"]), ("b", ["y", "x"]))
    }
    (tmp_path / "dataset_infos.json").write_text(json.dumps(infos))
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path / "a.jsonl")))
    assert str(caught.value) == (
        f"{tmp_path}/dataset_infos.json: column 'label': its configurations declare other label names, ['y', 'x'] and "
        "['x', 'y']; give the folder as path, and name the configuration"
    )


@pytest.mark.parametrize("names", [["class_0", "class_1"], ["LABEL_0", "LABEL_1"], ["0", "1"]])
def test_names_that_say_nothing_count_where_the_task_has_them(names: list[str]) -> None:
    def label(*labels: str) -> Any:
        task = SequenceClassification(kind="sequence_classification", labels=[*labels])
        return read_label(task, {"label": 0}, where="here", declared={"label": names})

    assert label(*names) == 0
    assert label(*reversed(names)) == 1
    assert label("sad", "glad") == 0


def test_names_that_say_nothing_disagree_with_none(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=3), "tags": List(Value("int64"))})
    Dataset.from_list(ROWS, features=features).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text(CARD)
    assert dict(list_source(Source(path=str(tmp_path))).files[0].class_names)["label"] == tuple(NAMES)


def test_a_configuration_without_names_takes_none_from_another(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.jsonl").write_text('{"text": "a", "label": 0}\n')
    configs = "configs:\n- config_name: b\n  data_files: b/*\n- config_name: a\n  data_files: a/*\n"
    info = "dataset_info:\n- config_name: a\n  features:\n  - {name: label, dtype: {class_label: {names: [x, y]}}}\n"
    other = "- config_name: b\n"
    (tmp_path / "README.md").write_text(f"---\n{configs}{info}{other}---\n")
    assert not list_source(Source(path=str(tmp_path), name="b")).files[0].class_names
