"""Data is known by what it is: it may move, and may not change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ted_ds.config.data import Data, Source
from ted_ds.data.reading import described
from ted_ds.data.reading.described import END_BYTES
from ted_ds.data.reading.listing import list_data, list_source

LONG = b'{"text": "w1 w2"}\n' * 4000  # of more than both ends


def identity(path: Path | str) -> dict[str, list[Any]]:
    return list_source(Source(path=str(path))).identity()


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        place = folder / name.replace("__", "/").replace("_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


def test_a_file_is_the_same_wherever_it_is_and_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, one__a_jsonl=LONG, two__b_jsonl=LONG)
    fsspec.filesystem("memory").pipe("/moved/c.jsonl", LONG)
    paths = (tmp_path / "one/a.jsonl", tmp_path / "two", f"file://{tmp_path}/one/a.jsonl", "memory://moved/c.jsonl")
    assert all(identity(path) == identity(paths[0]) for path in paths)


def test_held_out_data_are_part_of_what_is_known(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=LONG, b_jsonl=LONG[20:], c_jsonl=LONG)

    def known(evaluation: str) -> dict[str, dict[str, list[Any]]]:
        given = {"train": [{"path": str(tmp_path / "a.jsonl")}], "evaluation": [{"path": str(tmp_path / evaluation)}]}
        return list_data(Data.model_validate(given)).identity()

    assert known("c.jsonl") != known("b.jsonl")
    alone = list_data(Data.model_validate({"train": [{"path": str(tmp_path / "a.jsonl")}]})).identity()
    assert alone.items() < known("b.jsonl").items()


def test_a_folder_is_the_same_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path / "one", a_jsonl=LONG, sub__b_jsonl=b'{"text": "w"}\n')
    shutil.copytree(tmp_path / "one", tmp_path / "two/deeper")
    assert identity(tmp_path / "one") == identity(tmp_path / "two/deeper") == identity(tmp_path / "one/**/*.jsonl")
    assert [*identity(tmp_path / "one")] == ["a.jsonl", "sub/b.jsonl"]
    (tmp_path / "two/deeper/a.jsonl").rename(tmp_path / "two/deeper/c.jsonl")
    assert identity(tmp_path / "one") != identity(tmp_path / "two/deeper")


@pytest.mark.parametrize("at", [0, END_BYTES - 1, len(LONG) - END_BYTES, len(LONG) - 1])
def test_a_file_whose_ends_change_is_another_one(tmp_path: Path, at: int) -> None:
    changed = bytearray(LONG)
    changed[at] ^= 1
    write(tmp_path, a_jsonl=LONG, b_jsonl=bytes(changed))
    assert identity(tmp_path / "a.jsonl") != identity(tmp_path / "b.jsonl")


def test_a_file_that_grows_is_another_one(tmp_path: Path) -> None:
    write(tmp_path, a_txt=b"one\n", b_txt=b"one\ntwo\n")
    assert identity(tmp_path / "a.txt") != identity(tmp_path / "b.txt")


def test_other_names_for_the_same_ids_are_other_data(tmp_path: Path) -> None:
    for names in (["a", "b"], ["b", "a"]):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        Dataset.from_list([{"text": "w", "label": 0}], features=features).to_csv(tmp_path / f"{names[0]}/x.csv")
        (tmp_path / f"{names[0]}/README.md").write_text(
            "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
            f"          '0': {names[0]}\n          '1': {names[1]}\n---\n"
        )
    assert identity(tmp_path / "a") != identity(tmp_path / "b")


def test_of_many_files_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "MOST_ENDS", 3)
    for number in range(9):
        write(tmp_path, **{f"{number}_txt": b"one\n"})
    ends = [ends for _, ends in identity(tmp_path).values()]
    assert [bool(one) for one in ends] == [number in (0, 4, 8) for number in range(9)]
