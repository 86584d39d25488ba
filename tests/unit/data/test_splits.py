"""Which files of a folder are whose split: the same as the datasets library says, on this machine and on others."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fsspec
import pytest
from datasets import Dataset, DatasetDict, load_dataset_builder
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

from ted_ds.config.data import Source
from ted_ds.data.sources import locate
from ted_ds.data.splits import splits_by_name
from ted_ds.errors import DataError

LAYOUTS = (
    ["train.csv"],
    ["train.csv", "test.csv"],
    ["a.csv", "b.csv"],
    ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
    ["data/train-00000-of-00002-1f2e.parquet", "data/train-00001-of-00002-1f2e.parquet", "data/odd-00000-of-00001.csv"],
    ["data/my_split-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "test.csv"],
    ["train/a.csv", "test/a.csv", "validation/deep/a.csv"],
    ["training/a.csv", "testing/a.csv", "valid/a.csv", "other/a.csv"],
    ["my-eval/a.csv", "dev set/b.csv"],
    ["train/test.csv", "test/train.csv"],
    ["corpus_train.csv", "corpus.dev.csv", "corpus-eval1.csv", "0test.csv"],
    ["trainer.csv", "contest.csv", "latest.csv"],
    ["train_test.csv"],
    ["Train.csv", "test.csv"],
    ["val.csv", "evaluation.csv", "x.csv"],
    [".train.csv", "a.csv", "__cache__/test.csv", "sub/.hidden/test.csv"],
    ["data/train-0-of-1.csv", "data/test-0-of-1.csv"],
    ["en/train.csv", "de/train.csv", "de/test.csv"],
    ["train.csv", "README.csv"],
)
PARTS = ("train", "test", "val", "dev", "eval", "validation", "data", "x", "trains", "my train", "a-test", "valid2")


def random_layouts(count: int) -> list[list[str]]:
    draw = random.Random(5)
    return [
        sorted(
            {
                "/".join([*draw.choices(PARTS, k=draw.randrange(3)), f"{draw.choice(PARTS)}.csv"])
                for _ in range(draw.randrange(1, 5))
            }
        )
        for _ in range(count)
    ]


def write(folder: Path, files: list[str], card: str | None = None) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("text\nw1\n")
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}---\n# Words\n")
    return folder


def read(folder: Path | str, split: str, name: str | None = None, *, kind: str = "csv") -> list[str]:
    found = locate(Source(path=str(folder), split=split, name=name, format=kind))[1]  # type: ignore[arg-type]
    return sorted(file.removeprefix(f"{folder}/") for file in found)


def relative(folder: Path, files: Any) -> dict[str, list[str]]:
    """Each once: what two of its patterns match, datasets reads twice."""
    return {str(split): sorted({str(file).removeprefix(f"{folder}/") for file in files[split]}) for split in files}


@pytest.mark.parametrize("files", [*LAYOUTS, *random_layouts(30)], ids="+".join)
def test_names_mean_what_they_mean_to_datasets(tmp_path: Path, files: list[str]) -> None:
    folder = write(tmp_path, files)
    theirs = relative(folder, DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder)))
    assert {split: read(folder, split) for split in theirs} == theirs
    with pytest.raises(DataError, match=f"no split 'odder'; it has {', '.join(theirs)}$"):
        read(folder, "odder")


CARDS = {
    "a pattern": "configs:\n- config_name: default\n  data_files: part/*.csv\n",
    "several": "configs:\n- config_name: only\n  data_files: [x.csv, 'part/b*']\n",
    "splits": "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: part/a.csv}\n"
    "  - {split: odd, path: [x.csv, '**/b.csv']}\n",
    "a folder": "configs:\n- config_name: default\n  data_dir: part\n",
    "two": "configs:\n- {config_name: en, data_files: x.csv}\n- {config_name: de, default: true, data_files: part/*}\n",
    "none": "license: mit\n",
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_means_what_it_means_to_datasets(tmp_path: Path, card: str) -> None:
    folder = write(tmp_path, ["x.csv", "part/a.csv", "part/b.csv", "part/test.csv"], CARDS[card])
    theirs = relative(folder, load_dataset_builder(str(folder)).config.data_files)
    assert {split: read(folder, split) for split in theirs} == theirs
    if card == "two":
        assert read(folder, "train", "en") == ["x.csv"]


@pytest.mark.parametrize(
    ("card", "name", "message"),
    [
        ("two", "fr", "name: no configuration 'fr'; it has en, de"),
        ("none", "en", "name: 'en': its README.md names no configurations; leave name out"),
    ],
)
def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path, card: str, name: str, message: str) -> None:
    folder = write(tmp_path, ["x.csv"], CARDS[card])
    with pytest.raises(DataError) as caught:
        read(folder, "train", name)
    assert str(caught.value) == f"{folder}: {message}"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs:\n- data_files: x.csv\n", "has no config_name; give each one"),
        (
            "configs:\n- {config_name: a, data_files: x.csv}\n- {config_name: b, data_files: x.csv}\n",
            "Set name to one of",
        ),
        ("configs:\n- {config_name: a, data_files: x.csv, skiprows: 3}\n", "configs: a: skiprows would be ignored"),
        ("configs:\n- {config_name: a, data_files: [{split: train}]}\n", "give a split and a path"),
        ("configs:\n- {config_name: a, data_files: none.csv}\n", "split 'train': none of its files is there"),
        ("configs: [\n", "its front matter is no YAML"),
        (
            "configs:\n- {config_name: a, data_files: [{split: a, path: x.csv}, {split: a, path: x.csv}]}\n",
            "split 'a' is there twice",
        ),
    ],
)
def test_a_card_that_is_not_understood_is_refused(tmp_path: Path, card: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, ["x.csv"], card), "train")
    assert message in str(caught.value)


def test_folders_on_other_file_systems_have_splits_too() -> None:
    memory = fsspec.filesystem("memory")
    for file in ("data/train-00000-of-00001.csv", "data/dev-00000-of-00001.csv"):
        memory.pipe(f"/splits/{file}", b"text\nw1\n")
    root = "memory:///splits"
    assert read("memory://splits", "dev") == [f"{root}/data/dev-00000-of-00001.csv"]
    with pytest.raises(DataError, match=r"memory://splits: no split 'test'; it has train, dev$"):
        read("memory://splits", "test")
    memory.pipe("/splits/README.md", b"---\nconfigs:\n- config_name: a\n  data_files: data/dev*\n---\n")
    assert read("memory://splits", "train") == [f"{root}/data/dev-00000-of-00001.csv"]


def test_what_was_saved_has_the_splits_it_was_saved_with(tmp_path: Path) -> None:
    one, two = Dataset.from_list([{"text": "w1"}]), Dataset.from_list([{"text": "w2"}])
    DatasetDict({"train": one, "odd": two}).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "both", "odd", kind="arrow") == ["odd/data-00000-of-00001.arrow"]
    with pytest.raises(DataError, match=r"no split 'test'; it has odd, train$"):
        read(tmp_path / "both", "test", kind="arrow")
    with pytest.raises(DataError, match="name: 'en': a saved dataset has no configurations"):
        read(tmp_path / "both", "train", "en", kind="arrow")
    one.save_to_disk(tmp_path / "one")
    assert len(read(tmp_path / "one", "train", kind="arrow")) == 1
    with pytest.raises(DataError, match=r"no split 'odd'; it has train$"):
        read(tmp_path / "one", "odd", kind="arrow")


@pytest.mark.parametrize(("key", "value"), [("split", "test"), ("name", "en")])
@pytest.mark.parametrize("path", ["a.csv", "*.csv"])
def test_files_that_are_named_have_no_splits(tmp_path: Path, path: str, key: str, value: str) -> None:
    write(tmp_path, ["a.csv"])
    with pytest.raises(DataError, match=f"{key}: '{value}' would have no effect, as these are files"):
        locate(Source.model_validate({"path": str(tmp_path / path), key: value}))


def test_a_part_of_a_split_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'train\[:10%\]'; it has train; a part of a split cannot be named$"):
        read(write(tmp_path, ["train.csv"]), "train[:10%]")


def test_a_layout_that_datasets_finds_nothing_in_is_refused_too(tmp_path: Path) -> None:
    folder = write(tmp_path, ["README.md", "dataset_info.json"])
    with pytest.raises(EmptyDatasetError):
        get_data_patterns(str(folder))
    with pytest.raises(DataError, match="this folder holds no data files"):
        read(folder, "train")


def test_ten_thousand_files_take_no_time() -> None:
    files = [f"data/train-{i:05}-of-10000.parquet" for i in range(10000)]
    assert len(splits_by_name(files)["train"]) == 10000
