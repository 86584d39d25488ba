"""Where a source's files are and what is in them, told without torch and without reading them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ted_ds.config.data import Source
from ted_ds.data.sources import locate, names_hub
from ted_ds.errors import DataError

# --- where files are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.json", "json"),
        ("a.jsonl", "json"),
        ("a.csv", "csv"),
        ("a.parquet", "parquet"),
        ("a.txt", "text"),
        ("a.jsonl.gz", "json"),
        ("a.txt.zst", "text"),
        ("a.b.csv.bz2", "csv"),
    ],
)
def test_a_format_is_told_by_the_ending(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).touch()
    assert locate(Source(path=str(tmp_path / name))) == (expected, [str(tmp_path / name)])


def test_a_folder_gives_its_data_files_in_order_and_no_others(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert locate(Source(path=str(tmp_path))) == ("json", [str(tmp_path / "b.jsonl"), str(tmp_path / "sub/a.jsonl")])


def test_a_glob_gives_the_files_that_match_in_order(tmp_path: Path) -> None:
    for name in ("part-2.csv", "part-1.csv", "other.csv"):
        (tmp_path / name).touch()
    assert locate(Source(path=str(tmp_path / "part-*.csv"))) == (
        "csv",
        [str(tmp_path / "part-1.csv"), str(tmp_path / "part-2.csv")],
    )


def test_a_format_that_is_given_counts_more_than_the_ending(tmp_path: Path) -> None:
    (tmp_path / "a.data").touch()
    assert locate(Source(path=str(tmp_path / "a.data"), format="text")) == ("text", [str(tmp_path / "a.data")])


@pytest.mark.parametrize(
    ("path", "format_", "expected"),
    [
        ("org/name", "auto", True),
        ("name", "auto", True),
        ("anything at all", "hub", True),
        ("org/name", "json", False),
        ("org/name.jsonl", "auto", False),
        ("./name", "auto", False),
        ("s3://org/name", "auto", False),
        ("there", "auto", False),
        ("there", "hub", True),
    ],
)
def test_a_hub_name_is_what_says_so_or_what_nothing_local_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, format_: Any, expected: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert names_hub(Source(path=path, format=format_)) == expected


def test_a_hub_name_that_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(DataError, match=r"^no-such-org/no-such-name: cannot be read: "):
        locate(Source(path="no-such-org/no-such-name"))


@pytest.mark.parametrize("path", ["none.jsonl", "data/none.txt.gz", "/none", "./none", "../none", "none/*.csv"])
def test_a_path_with_nothing_there_is_refused_and_no_hub_name(path: str) -> None:
    with pytest.raises(DataError, match="no such data file or folder"):
        locate(Source(path=path))


def test_a_folder_without_data_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(DataError, match=r"this folder holds no data files; known endings: \.json, "):
        locate(Source(path=str(tmp_path)))


def test_a_mix_of_formats_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="cannot tell one format from the endings of its files; set format: json, csv"):
        locate(Source(path=str(tmp_path)))


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.data").touch()
    with pytest.raises(DataError, match="cannot tell one format"):
        locate(Source(path=str(tmp_path / "a.data")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xlsx", ".xlsx files cannot be read here; save it as CSV, JSON lines or Parquet, and give what comes of it"),
        ("A.XLS", ".xls files cannot be read here; save it as CSV, JSON lines or Parquet, and give what comes of it"),
        ("a.zip", ".zip files cannot be read here; unpack it, and give what comes of it as path"),
        ("a.tar.gz", ".tar files cannot be read here; unpack it, and give what comes of it as path"),
        ("a.pdf", ".pdf files cannot be read here; save its text as .txt, or as JSON lines, and give what comes of it"),
    ],
)
def test_files_of_other_kinds_are_refused_with_what_to_make_of_them(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        locate(Source(path=str(tmp_path / name)))
    assert message in str(caught.value)


def test_hidden_files_and_the_notes_of_datasets_are_no_data(tmp_path: Path) -> None:
    names = (".a.jsonl", ".cache/b.jsonl", "dataset_info.json", "part/state.json", "part/c.arrow")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = ("arrow", [str(tmp_path / "part/c.arrow")])
    assert locate(Source(path=str(tmp_path))) == expected
    assert locate(Source(path=str(tmp_path), format="arrow")) == expected


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/a.jsonl").touch()
    assert locate(Source(path=str(tmp_path / ".hidden"))) == ("json", [str(tmp_path / ".hidden/a.jsonl")])


def test_of_what_a_glob_matches_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").mkdir()
    assert locate(Source(path=str(tmp_path / "*.jsonl"))) == ("json", [str(tmp_path / "a.jsonl")])


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    for path in (tmp_path, tmp_path / "a.jsonl", tmp_path / "*.jsonl"):
        assert locate(Source(path=f"file://{path}")) == ("json", [str(tmp_path / "a.jsonl")])
    with pytest.raises(DataError, match=r"^/none\.jsonl: no such data file or folder"):
        locate(Source(path="file:///none.jsonl"))


def test_a_path_the_system_refuses_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be listed: File name too long"):
        locate(Source(path="a" * 300 + ".jsonl"))


def test_files_on_other_file_systems_are_found_as_local_ones_are() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b.jsonl", "sub/a.jsonl", "README.md", "sub/.c.jsonl", "two.csv/x.csv"):
        memory.pipe(f"/listing/{name}", b"x")
    memory.pipe("/saved/dataset_dict.json", b"{}")
    memory.pipe("/saved/test/state.json", b"{}")
    memory.pipe("/saved/test/data.arrow", b"x")
    jsonl = [f"memory:///listing/{name}" for name in ("b.jsonl", "sub/a.jsonl")]
    assert locate(Source(path="memory://listing/*.jsonl")) == ("json", jsonl[:1])
    assert locate(Source(path="memory://listing/sub")) == ("json", jsonl[1:])
    assert locate(Source(path="memory://listing/sub/a.jsonl")) == ("json", jsonl[1:])
    assert locate(Source(path="memory://listing/**/*.jsonl")) == ("json", jsonl)
    assert locate(Source(path="memory://listing/*.csv/*")) == ("csv", ["memory:///listing/two.csv/x.csv"])
    assert locate(Source(path="memory://saved", split="test")) == ("arrow", ["memory:///saved/test/data.arrow"])
    with pytest.raises(DataError, match="cannot tell one format"):
        locate(Source(path="memory://listing"))
    for path in ("memory://none", "memory://listing/none.jsonl", "memory://listing/*.none"):
        with pytest.raises(DataError, match="no such data file or folder"):
            locate(Source(path=path))


@pytest.mark.parametrize("path", ["nosuchprotocol://a/b.jsonl", "s3://"])
def test_a_url_that_cannot_be_listed_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=f"^{path}: cannot be listed: "):
        locate(Source(path=path))


def test_local_files_are_found_without_torch_datasets_or_fsspec(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    code = (
        "import sys; from ted_ds.config.data import Source; from ted_ds.data.sources import locate\n"
        f"print(locate(Source(path={str(tmp_path)!r})))\n"
        "print({'torch', 'datasets', 'fsspec', 'pyarrow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [f"('json', [{str(tmp_path / 'a.jsonl')!r}])", "set()"]
