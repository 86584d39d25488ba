"""Whatever a file holds and however it is cut up: each record comes once, in order, or is named as a bad one."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ted_ds.config.data import Source
from ted_ds.data.reading import lines, listing, tables
from ted_ds.data.reading.described import END_BYTES
from ted_ds.data.reading.extents import DataFile, Extent, ExtentTable
from ted_ds.data.reading.listing import Listing, describe_position, empty_files, list_source, read_extent, read_in_order
from ted_ds.data.reading.records import START, BadRecord, Item, Position
from ted_ds.errors import DataError
from tests.tiny import write_rows

MIB = 2**20
LARGE = 16 * MIB
MARK = b"\xef\xbb\xbf"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
property_test = settings(
    deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def new_file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes files, each under a name of its own."""
    numbers = itertools.count()

    def write(ending: str, content: bytes) -> Path:
        path = tmp_path / f"{next(numbers)}{ending}"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small files, too, are read in several pieces."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", 16)
    monkeypatch.setattr(lines, "LOOK_BACK_BYTES", 3)
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(listing, "ARROW_EXTENT_ROWS", 3)


def listed(path: Path, **options: Any) -> Listing:
    return list_source(Source(path=str(path), **options))


def items_of(
    source: Listing, columns: tuple[str, ...] = ("text",), *, extent_bytes: int = 2**18, max_bytes: int = LARGE
) -> list[tuple[Extent, list[Item]]]:
    """The items of each extent."""
    extents = source.extents(extent_bytes)
    return [
        (extents[index], list(read_extent(source, extents[index], START, columns, max_bytes=max_bytes)))
        for index in range(len(extents))
    ]


def outcomes(of_extents: list[tuple[Extent, list[Item]]], column: str = "text") -> list[Any]:
    """Of each item its text, or None where there is a fault."""
    return [None if item.fault else item.row[column] for _, items in of_extents for item in items]


def check_resuming(source: Listing, columns: tuple[str, ...] = ("text",), **options: Any) -> None:
    """From the start and the end of any item on, reading gives exactly those that come then."""
    for extent, items in items_of(source, columns, **options):
        max_bytes = options.get("max_bytes", LARGE)
        for index, item in enumerate(items):
            for position, rest in ((item.start, items[index:]), (item.end, items[index + 1 :])):
                if item.start != item.end:
                    assert list(read_extent(source, extent, position, columns, max_bytes=max_bytes)) == rest
        assert [item.start.ordinal for item in items] == list(range(len(items)))


def text_of(data: bytes, max_bytes: int) -> str | None:
    try:
        return data.decode().removesuffix("\r") if len(data) <= max_bytes else None
    except UnicodeDecodeError:
        return None


# --- the same records however a file is cut ---------------------------------------------------------------------------

line_ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n", b"\n\r\n\r\n"])
json_lines = st.one_of(
    st.builds(
        lambda text, ascii_only: json.dumps({"id": 7, "text": text}, ensure_ascii=ascii_only).encode(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.booleans(),
    ),
    st.sampled_from([b'{"text": "half', b"[1]", b'{"text": null}', b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"\0"]),
)
files_of_json_lines = st.builds(
    lambda mark, pairs, last: mark + b"".join(line + end for line, end in pairs) + last,
    st.sampled_from([b"", MARK]),
    st.lists(st.tuples(json_lines, line_ends), max_size=12),
    st.one_of(st.just(b""), json_lines),
).filter(len)
pieces_of_text = st.sampled_from(
    [b"a", b"bc", b" ", b"\t", "ä漢".encode(), b"\xff", b"\r", b"\n", b"\n", b"\n", b"\r\n", b"word " * 9, b" " * 40]
)
files_of_text = st.builds(
    lambda mark, pieces: mark + b"".join(pieces), st.sampled_from([b"", MARK]), st.lists(pieces_of_text, max_size=30)
).filter(len)
extent_sizes = st.one_of(st.integers(1, 40), st.just(2**18))
limits = st.sampled_from([10, 45, LARGE])


def raw_lines(content: bytes, max_bytes: int) -> list[bytes | None]:
    """Lines without the mark at the start of the file; None in the place of one that is too long, mark included."""
    raw = content.split(b"\r" if b"\r" in content and b"\n" not in content else b"\n")
    raw = raw[:-1] if raw[-1] == b"" else raw
    kept: list[bytes | None] = [line if len(line) <= max_bytes else None for line in raw]
    return [kept[0].removeprefix(MARK) if kept[0] else kept[0], *kept[1:]]


def expected_of_json_lines(content: bytes, max_bytes: int) -> list[str | None]:
    expected: list[str | None] = []
    for line in raw_lines(content, max_bytes):
        if line is not None and not line.strip():
            continue
        try:
            text = json.loads((line or b"").decode())["text"]
            text.encode()
            expected.append(text)
        except (ValueError, TypeError, AttributeError):
            expected.append(None)
    return expected


def expected_of_blocks(content: bytes, max_bytes: int) -> list[str | None]:
    expected: list[str | None] = []
    kept = raw_lines(content, max_bytes)
    for is_blank, group in itertools.groupby(kept, lambda line: line is not None and not line.strip()):
        block = list(group)
        if not is_blank:
            too_long = None in block or sum(len(line or b"") + 1 for line in block) > max_bytes
            expected.append(None if too_long else text_of(b"\n".join(line or b"" for line in block), max_bytes))
    return expected


@property_test
@given(content=files_of_json_lines, extent_bytes=extent_sizes, max_bytes=limits)
def test_extents_of_any_size_hold_each_json_line_once(
    new_file: Any, small_reads: None, content: bytes, extent_bytes: int, max_bytes: int
) -> None:
    source = listed(new_file(".jsonl", content))
    of_extents = items_of(source, extent_bytes=extent_bytes, max_bytes=max_bytes)
    assert outcomes(of_extents) == expected_of_json_lines(content, max_bytes)
    check_resuming(source, extent_bytes=extent_bytes, max_bytes=max_bytes)


@property_test
@given(content=files_of_text, extent_bytes=extent_sizes, max_bytes=limits)
def test_extents_of_any_size_hold_each_line_of_text_once(
    new_file: Any, small_reads: None, content: bytes, extent_bytes: int, max_bytes: int
) -> None:
    source = listed(new_file(".txt", content))
    expected = [None if line is None else text_of(line, max_bytes) for line in raw_lines(content, max_bytes)]
    assert outcomes(items_of(source, extent_bytes=extent_bytes, max_bytes=max_bytes)) == expected
    check_resuming(source, extent_bytes=extent_bytes, max_bytes=max_bytes)


@property_test
@given(content=files_of_text, extent_bytes=extent_sizes, max_bytes=limits)
@example(content=MARK + b"\nafter", extent_bytes=4, max_bytes=LARGE)
@example(content=b"a\n" + b"b" * 60 + b"\nc\n", extent_bytes=2, max_bytes=10)
@example(content=b"word" + b" " * 40 + b"\nsame block\n", extent_bytes=20, max_bytes=LARGE)
@example(content=b" " * 40 + b"\nafter a blank line\n", extent_bytes=20, max_bytes=LARGE)
@example(content=b" " * 40 + b"\nafter a line too long\n", extent_bytes=20, max_bytes=25)
def test_extents_of_any_size_hold_each_block_of_text_once(
    new_file: Any, small_reads: None, content: bytes, extent_bytes: int, max_bytes: int
) -> None:
    source = listed(new_file(".txt", content), documents="block")
    of_extents = items_of(source, extent_bytes=extent_bytes, max_bytes=max_bytes)
    assert outcomes(of_extents) == expected_of_blocks(content, max_bytes)
    check_resuming(source, extent_bytes=extent_bytes, max_bytes=max_bytes)


@property_test
@given(
    content=files_of_json_lines,
    ending=st.sampled_from(sorted(COMPRESS)),
    cuts=st.lists(st.integers(0, 300), max_size=5),
    max_bytes=limits,
)
def test_compressed_files_of_any_members_read_like_plain_ones_and_go_on_from_the_member_they_are_in(
    new_file: Any, content: bytes, ending: str, cuts: list[int], max_bytes: int
) -> None:
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    members = [COMPRESS[ending](content[a:b]) for a, b in itertools.pairwise(places)]
    path = new_file(f".jsonl{ending}", b"".join(members))
    source = listed(path)
    ((extent, items),) = items_of(source, max_bytes=max_bytes)
    assert outcomes([(extent, items)]) == expected_of_json_lines(content, max_bytes)
    check_resuming(source, max_bytes=max_bytes)
    starts = list(itertools.accumulate((len(member) for member in members), initial=0))
    for index, item in enumerate(items):
        assert item.start.block in starts
        path.write_bytes(b"#" * item.start.block + b"".join(members)[item.start.block :])
        assert list(read_extent(source, extent, item.start, ["text"], max_bytes=max_bytes)) == items[index:]


@property_test
@given(content=files_of_text, ending=st.sampled_from(sorted(COMPRESS)), documents=st.sampled_from(["line", "block"]))
def test_compressed_text_reads_like_plain_text(new_file: Any, content: bytes, ending: str, documents: str) -> None:
    plain = listed(new_file(".txt", content), documents=documents)
    packed = listed(new_file(f".txt{ending}", COMPRESS[ending](content)), documents=documents)
    assert outcomes(items_of(packed)) == outcomes(items_of(plain))
    check_resuming(packed)


cells = st.text(st.sampled_from('ab,";\n\r\t ä漢\0{[1'), max_size=8)


@property_test
@given(
    rows=st.lists(st.tuples(cells, cells), max_size=8),
    ending=st.sampled_from(["", *COMPRESS]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    blank=st.booleans(),
    mark=st.booleans(),
)
def test_any_cells_come_out_of_csv_as_they_went_in_from_any_row_on(
    new_file: Any, small_reads: None, rows: list[tuple[str, str]], ending: str, line_end: str, blank: bool, mark: bool
) -> None:
    buffer = io.StringIO()
    if blank:
        buffer.write(line_end)
    writer = csv.writer(buffer, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["x", "text"])
    for row in rows:
        writer.writerow(row)
        if blank:
            buffer.write(line_end)
    content = (MARK if mark else b"") + buffer.getvalue().encode()
    source = listed(new_file(f".csv{ending}", COMPRESS.get(ending, bytes)(content)))
    # csv takes the end of a line inside a cell as it stands
    assert outcomes(items_of(source)) == [text for _, text in rows]
    check_resuming(source)


@property_test
@given(
    texts=st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=12),
    group=st.integers(1, 13),
    kind=st.sampled_from(["parquet", "arrow stream", "arrow file", "remote arrow"]),
)
def test_tables_give_each_row_once_from_any_row_on(
    tmp_path: Path, new_file: Any, small_reads: None, texts: list[str | None], group: int, kind: str
) -> None:
    table = pyarrow.table({"label": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})
    buffer = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, buffer, row_group_size=group)
    else:
        new = pyarrow.ipc.new_stream if kind != "arrow file" else pyarrow.ipc.new_file
        with new(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    if kind == "remote arrow":
        fsspec.filesystem("memory").pipe("/a.arrow", buffer.getvalue())
        source = list_source(Source(path="memory://a.arrow"))
    else:
        source = listed(new_file(f".{kind.split()[0]}", buffer.getvalue()))
    of_extents = items_of(source, ("text", "label"))
    assert outcomes(of_extents) == texts
    labels = outcomes(of_extents, "label")
    assert labels == [None if text is None else number for number, text in enumerate(texts)]
    check_resuming(source, ("text", "label"))


@property_test
@given(sizes=st.lists(st.integers(0, 9), max_size=6), length=st.integers(1, 10))
def test_extents_cover_every_byte_of_every_file_once(sizes: list[int], length: int) -> None:
    files = [DataFile(str(number), size) for number, size in enumerate(sizes)]
    table = ExtentTable(files, extent_bytes=length, extent_rows=1)
    covered = [(e.url, place) for e in (table[i] for i in range(len(table))) for place in range(e.start, e.end)]
    assert covered == [(file.url, place) for file in files for place in range(file.size)]
    assert all(table[i].end - table[i].start <= length for i in range(len(table)))
    for outside in (-1, len(table)):
        with pytest.raises(IndexError):
            table[outside]


# --- rows as they come out --------------------------------------------------------------------------------------------


def rows_of(path: Path, *columns: str, **options: Any) -> list[dict[str, Any]]:
    """Rows of a source of which none is bad."""
    bad: list[BadRecord] = []
    rows = read_in_order(listed(path, **options), columns or ("text",), max_bytes=LARGE, report=bad.append)
    found = [record.row for record in rows]
    assert bad == []
    return found


def texts_and_faults(
    path: Path, *columns: str, max_bytes: int = LARGE, **options: Any
) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts of the good rows; positions and faults of the bad ones, all of which must be in that file."""
    bad: list[BadRecord] = []
    rows = read_in_order(listed(path, **options), columns or ("text",), max_bytes=max_bytes, report=bad.append)
    texts = [record.row["text"] for record in rows]
    assert {record.file for record in bad} <= {str(path)}
    return texts, [(record.position, record.fault) for record in bad]


def json_of(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_json_lines_plain_and_compressed_are_read(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": 0}, {"text": "zwei, drei", "label": [1, {"a": None}]}]
    plain = write_rows(tmp_path / "a.jsonl", rows)
    assert rows_of(plain, "text", "label") == rows
    for ending, compress in COMPRESS.items():
        (tmp_path / f"a.jsonl{ending}").write_bytes(compress(plain.read_bytes()))
        assert rows_of(tmp_path / f"a.jsonl{ending}", "text", "label") == rows


@pytest.mark.parametrize("ending", ["", *COMPRESS])
def test_a_json_list_is_read_from_any_element_on(new_file: Any, ending: str) -> None:
    content = MARK + b' [{"text": "one", "x": 1},\n{"text": "two"}, 3, {"text": "four"}]\n'
    source = listed(new_file(f".json{ending}", COMPRESS.get(ending, bytes)(content)))
    assert outcomes(items_of(source)) == ["one", "two", None, "four"]
    check_resuming(source)


def test_a_json_file_that_is_no_list_is_read_line_by_line(new_file: Any) -> None:
    assert rows_of(new_file(".json", json_of("one", "two"))) == [{"text": "one"}, {"text": "two"}]


def test_only_the_columns_asked_for_are_given(tmp_path: Path) -> None:
    table = {"text": ["one", "two"], "label": [1, 0], "more": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    write_rows(
        tmp_path / "a.jsonl", [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    )
    (tmp_path / "a.csv").write_text("more,label,text\nx,1,one\ny,0,two\n", encoding="utf-8")
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        ids = ("1", "0") if name == "a.csv" else (1, 0)
        assert rows_of(tmp_path / name, "text", "label") == [
            {"text": "one", "label": ids[0]},
            {"text": "two", "label": ids[1]},
        ]


def test_of_a_parquet_file_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    noise = [bytes(range(256)) * 4000] * 8
    table = pyarrow.table({"text": [str(number) for number in range(8)], "noise": noise})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none", row_group_size=4)
    start = pyarrow.parquet.read_metadata(path).row_group(1).column(1).data_page_offset
    with path.open("r+b") as file:  # damage it: whoever reads that column fails
        file.seek(start)
        file.write(b"\xff" * 100)
    assert [row["text"] for row in rows_of(path)] == [*"01234567"]
    texts, bad = texts_and_faults(path, "text", "noise")
    assert texts == [*"0123"], "the other row group can still be read"
    assert [position for position, _ in bad] == ["row 5"]
    assert bad[0][1].startswith("cannot be read from here on: ")


@pytest.mark.parametrize("word", ["null", "NA", "None", "nan", "1", "[1]"])
def test_a_csv_text_that_looks_like_something_else_is_still_text(tmp_path: Path, word: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{word},1\n", encoding="utf-8")
    assert rows_of(path) == [{"text": word}]


@pytest.mark.parametrize(
    "cell", ["3", "01", "1.0", "-0.5", '[0, "a"]', "true", "NaN", "1e999", "null", "", '{"a": 1}', "[" * 100_000]
)
def test_every_csv_value_is_text_whatever_it_looks_like(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["a", cell], ["b", "7"]])
    assert rows_of(path, "text", "label") == [{"text": "a", "label": cell}, {"text": "b", "label": "7"}]


# --- how people write tables ------------------------------------------------------------------------------------------

TABLE = [["text", "label"], ["one", "a"], ["two words", "b"], ["three, four;\tfive|six", "c"], ["seven\nlines", "a"]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "semicolons.csv", "tabs.csv", "bars.csv"])
def test_tables_of_any_separator_and_line_end_are_read(tmp_path: Path, name: str, mark: bytes, ending: str) -> None:
    delimiter = {"a.csv": ",", "semicolons.csv": ";", "bars.csv": "|"}.get(name, "\t")
    written = io.StringIO()
    table = TABLE if ending != "\r" else TABLE[:-1]  # a line feed in a field, and lines that end otherwise
    csv.writer(written, delimiter=delimiter, lineterminator=ending).writerows(table)
    for path, compress in ((tmp_path / name, bytes), (tmp_path / f"{name}.gz", gzip.compress)):
        path.write_bytes(compress(mark + written.getvalue().encode()))
        assert rows_of(path, "text", "label") == [dict(zip(table[0], row, strict=True)) for row in table[1:]]
        check_resuming(listed(path))


def test_another_separator_is_taken_only_where_it_gives_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label;x\na,b;c\n")
    assert rows_of(tmp_path / "a.csv", "text") == [{"text": "a"}]
    (tmp_path / "b.csv").write_text("words;label\na;b\n")
    with pytest.raises(DataError, match=r"row 1: no column 'text'; it has words;label"):
        rows_of(tmp_path / "b.csv", "text")


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".txt.gz"])
def test_lines_that_end_in_carriage_returns_alone_are_lines(tmp_path: Path, ending: str) -> None:
    texts = [f"line {number}" for number in range(50)]
    lines = [json.dumps({"text": text}) if ending == ".jsonl" else text for text in texts]
    for between in ("\r", "\n", "\r\n"):
        name = {"\r": "cr", "\n": "lf", "\r\n": "crlf"}[between]
        content = between.join([*lines, ""]).encode()
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    source = listed(tmp_path)  # each file by itself
    assert [item.row["text"] for _, items in items_of(source, extent_bytes=37) for item in items] == texts * 3
    check_resuming(source, extent_bytes=37)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt", ".csv.gz"])
def test_text_in_another_encoding_is_refused_by_its_name(tmp_path: Path, ending: str, encoding: str) -> None:
    content = "\ufeff".encode(encoding) if encoding.endswith("be") else b""
    content += "text\none\n".encode(encoding)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    with pytest.raises(DataError) as caught:
        listed(path)
    assert str(caught.value) == (
        f"{path}: cannot be read: it is text in UTF-16 or UTF-32; save it as UTF-8, such as with iconv -f UTF-16 -t "
        "UTF-8"
    )


# --- columns that are there twice -------------------------------------------------------------------------------------


def write_doubled(folder: Path, ending: str, *, second: str = "text") -> Path:
    path = folder / f"a{ending}"
    object_ = f'{{"text": "one", "label": 0, "more": {{"text": 1, "text": 2}}, "{second}": "two"}}'
    match ending:
        case ".csv" | ".tsv":
            between = "," if ending == ".csv" else "\t"
            path.write_text(between.join(["text", "label", second]) + "\n" + between.join(["one", "0", "two"]) + "\n")
        case ".jsonl":
            path.write_text(f"{object_}\n")
        case ".json":
            path.write_text(f"[{object_}]")
        case _:
            table = pyarrow.table([["one"], [0], ["two"]], names=["text", "label", second])
            if ending == ".parquet":
                pyarrow.parquet.write_table(table, path)
            else:
                with pyarrow.ipc.new_stream(path, table.schema) as writer:
                    writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow"])
def test_a_column_that_is_there_twice_is_refused_where_it_is_wanted(tmp_path: Path, ending: str) -> None:
    path = write_doubled(tmp_path, ending)
    with pytest.raises(DataError) as caught:
        rows_of(path, "text", "label")
    assert str(caught.value) == f"{path}: row 1: more than one column 'text'; remove or rename all but one"
    (tmp_path / "other").mkdir()
    other = write_doubled(tmp_path / "other", ending, second="other")
    assert [row["text"] for row in rows_of(other, "text")] == ["one"]


def test_a_key_that_a_later_row_has_twice_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n{"text": "\\"text\\" \\"text\\"", "k": "text"}\n')
    fault = "more than one column 'text'; remove or rename all but one"
    assert texts_and_faults(path) == (["a", '"text" "text"'], [("row 2", fault)])


def test_text_files_are_read_by_line_by_block_or_whole(new_file: Any) -> None:
    path = new_file(".txt", MARK + "one\r\n\r\n \n\ntwo\nwörds\n\nthree".encode())
    assert [row["text"] for row in rows_of(path)] == ["one", "", " ", "", "two", "wörds", "", "three"]
    assert [row["text"] for row in rows_of(path, documents="block")] == ["one", "two\nwörds", "three"]
    assert [row["text"] for row in rows_of(path, documents="file")] == ["one\r\n\r\n \n\ntwo\nwörds\n\nthree"]
    check_resuming(listed(path, documents="file"))


def test_what_datasets_saved_is_read_with_its_split(tmp_path: Path) -> None:
    of_split = {
        split: datasets.Dataset.from_dict({"text": [f"{split} {number}" for number in range(2500)]})
        for split in ("train", "test")
    }
    of_split["train"].save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(of_split).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") == [*of_split["train"]]
    assert rows_of(tmp_path / "two", split="test") == [*of_split["test"]]
    with pytest.raises(DataError, match="no split 'none'; it has test, train"):
        rows_of(tmp_path / "two", split="none")


def test_a_folder_in_hub_form_is_read_by_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "a"}])
    write_rows(tmp_path / "test.jsonl", [{"text": "b"}])
    assert rows_of(tmp_path, format="hub") == [{"text": "a"}]
    assert rows_of(tmp_path, format="hub", split="test") == [{"text": "b"}]
    with pytest.raises(DataError, match=r"no split 'none'; it has train, test"):
        rows_of(tmp_path, format="hub", split="none")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_rows_without_the_text_column_are_refused_if_the_first_is_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"body": "a", "label": 1}])
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert str(caught.value) == (
        f"{path}: row 1: no column 'text'; it has body, label. Set task.text_column, task.label_column or "
        "task.target_columns"
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"hello", "not JSON in UTF-8: Expecting value"),
        (b'{"text": "b"', "not JSON in UTF-8: Expecting ',' delimiter"),
        (b"\x00", "not JSON in UTF-8: Expecting value"),
        (b'{"text": "caf\xe9"}', "not JSON in UTF-8: 'utf-8' codec can't decode byte 0xe9"),
        ('{"text": "a"}'.encode("utf-16-le"), "not JSON in UTF-8: "),
        (b'{"text": "\xed\xa0\x80"}', "not JSON in UTF-8: 'utf-8' codec can't decode byte 0xed"),
        (b'{"text": "\\ud800 half"}', "column 'text': not valid Unicode (wrong encoding, or half a surrogate pair)"),
        (b'{"text": ' + b"[" * 200_000 + b"}", "not JSON in UTF-8: maximum recursion depth exceeded"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON in UTF-8: Exceeds the limit"),
        (b'["text"]', "a JSON list; each line must be an object"),
        (b'"text"', "a JSON str; each line must be an object"),
        (b'{"label": 1}', "no column 'text'; it has label"),
        (b'{"\\ud800": 1}', "no column 'text'; it has \\ud800"),
        (b"{}", "no column 'text'; it has none"),
        (b'{"text": null}', "no value in column 'text'; every row needs one"),
        (b'{"text": 5}', "column 'text' holds 5; it must be text"),
    ],
    ids=range(16),
)
def test_a_bad_line_is_skipped_with_its_row_or_place_and_the_rest_is_read(
    new_file: Any, line: bytes, fault: str
) -> None:
    content = json_of("a") + line + b"\n" + json_of("c")
    texts, ((position, found),) = texts_and_faults(new_file(".jsonl", content))
    assert texts == ["a", "c"]
    assert position == "row 2"
    assert found.startswith(fault)
    assert found.encode(), "it can be printed"

    path = new_file(".jsonl", content)
    both = list_source(Source(path=str(path.parent / "*.jsonl")))
    bad: list[BadRecord] = []
    assert len(list(read_in_order(both, ["text"], max_bytes=LARGE, report=bad.append))) == 4
    assert bad[1] == BadRecord(str(path), f"byte {len(json_of('a'))}", found)


def test_a_bad_element_of_a_list_is_skipped(new_file: Any) -> None:
    path = new_file(".json", b'[{"text": "a"}, 3, {"text": null}, {"text": "d"}]')
    texts, bad = texts_and_faults(path)
    assert texts == ["a", "d"]
    assert bad == [
        ("row 2", "a JSON int; each element must be an object"),
        ("row 3", "no value in column 'text'; every row needs one"),
    ]


@pytest.mark.parametrize("content", [b'[{"text": "a"},', b'[{"text": "\xff"}]', b"[" * 100_000])
def test_a_list_that_is_no_json_is_skipped_as_a_whole(new_file: Any, content: bytes) -> None:
    texts, ((position, fault),) = texts_and_faults(new_file(".json", content))
    assert (texts, position) == ([], "row 1")
    assert fault.startswith("not JSON in UTF-8: ")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_json_list_too_large_to_hold_is_not_held(new_file: Any, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr("ted_ds.data.reading.whole.LARGEST_ARRAY_BYTES", MIB)
    path = new_file(f".json{ending}", COMPRESS.get(ending, bytes)(b"[" + b" " * (MIB + 1) + b"]"))
    fault = "a JSON array of more than 1 MiB would be held whole; use JSON lines"
    assert texts_and_faults(path) == ([], [("row 1", fault)])


@pytest.mark.parametrize("ending", ["", *COMPRESS])
@pytest.mark.parametrize(("documents", "count"), [("line", 3), ("block", 2), ("file", 1)])
def test_text_in_another_encoding_is_a_fault(new_file: Any, documents: str, count: int, ending: str) -> None:
    content = "caf\xe9\nna\xefve\n\nfair\n".encode("latin-1")
    path = new_file(f".txt{ending}", COMPRESS.get(ending, bytes)(content))
    texts, bad = texts_and_faults(path, documents=documents)
    assert [text for text in texts if text] == (["fair"] if documents != "file" else [])
    assert [position for position, _ in bad] == ["row 1", "row 2"][: len(bad)]
    assert len(bad) == {"line": 2, "block": 1, "file": 1}[documents]
    assert all(fault.startswith("not UTF-8: 'utf-8' codec can't decode byte 0xe") for _, fault in bad)


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("num_members", [1, 3])
def test_of_a_truncated_file_what_there_is_is_read(new_file: Any, ending: str, num_members: int) -> None:
    # random letters, so that something is left of a compressed block when its end is cut off
    members = [
        json_of(*(f"{number} {hash((number, member)):x}" for number in range(5000))) for member in range(num_members)
    ]
    packed = b"".join(COMPRESS[ending](member) for member in members)
    texts, ((position, fault),) = texts_and_faults(new_file(f".jsonl{ending}", packed[:-100]))
    whole = [json.loads(line)["text"] for line in b"".join(members).splitlines()]
    assert texts == whole[: len(texts)]
    assert len(texts) >= 5000 * (num_members - 1) + (2000 if ending in (".gz", ".zst") else 0)
    start = len(packed) - len(COMPRESS[ending](members[-1]))
    assert fault == f"cannot be read from here on: truncated: the {ending} data starting at byte {start} has no end"
    assert position == f"row {len(texts) + 1}"


@pytest.mark.parametrize("ending", COMPRESS)
def test_where_compressed_data_is_damaged_the_records_before_are_read(new_file: Any, ending: str) -> None:
    first, second = (COMPRESS[ending](json_of(*(f"{name}{number}" for number in range(100)))) for name in "ab")
    path = new_file(f".jsonl{ending}", first + second[:20] + b"\xff" * 30 + second[50:])
    source = listed(path)
    ((extent, items),) = items_of(source)
    assert [item.row.get("text") for item in items[:100]] == [f"a{number}" for number in range(100)]
    fault = items[-1].fault or ""
    assert fault.startswith("cannot be read from here on: ")
    assert describe_position(
        extent, items[-1].start, source
    ) == f"byte {len(json_of(*(f'a{n}' for n in range(100))))} " + ("after that of byte 0 decompressed")


def test_what_is_no_compressed_data_at_all_is_one_fault(new_file: Any) -> None:
    for ending in COMPRESS:
        for name in (f".jsonl{ending}", f".json{ending}", f".txt{ending}", f".csv{ending}"):
            texts, ((position, fault),) = texts_and_faults(new_file(name, b"plain text"))
            assert (texts, position) == ([], "row 1")
            assert fault.startswith("cannot be read from here on: ")


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_zeros_after_a_member_are_padding(new_file: Any, ending: str) -> None:
    one, two = (COMPRESS[ending](json_of(text)) for text in ("one", "two"))
    path = new_file(f".jsonl{ending}", one + bytes(1000) + two + bytes(512))
    assert [row["text"] for row in rows_of(path)] == ["one", "two"]
    check_resuming(listed(path))


def test_frames_to_be_skipped_are_skipped(new_file: Any) -> None:
    one, two = (COMPRESS[".zst"](json_of(text)) for text in ("one", "two"))
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"notes"
    path = new_file(".jsonl.zst", skippable + one + skippable + two + skippable)
    assert [row["text"] for row in rows_of(path)] == ["one", "two"]
    check_resuming(listed(path))


def test_a_parquet_file_without_the_column_beside_one_with_it_is_named_for_each_row(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"] * 3}), tmp_path / "b.parquet", row_group_size=2)
    bad: list[BadRecord] = []
    source = listed(tmp_path)
    rows = list(read_in_order(source, ["text"], max_bytes=LARGE, report=bad.append))
    assert [record[:2] for record in rows] == [(1, {"text": "one"}), (2, {"text": "two"})]
    fault = "no column 'text'; it has body"
    places = ["row group 0, row 1", "row group 0, row 2", "row group 1, row 1"]
    assert bad == [BadRecord(str(tmp_path / "b.parquet"), place, fault) for place in places]
    check_resuming(source)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_whose_text_is_not_unicode_in_one_row_gives_the_others(tmp_path: Path, kind: str) -> None:
    array = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    table = pyarrow.table({"text": array})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    texts, ((position, fault),) = texts_and_faults(path)
    assert (texts, position) == (["one", "three"], "row 2")
    assert fault.startswith("a value cannot be read: 'utf-8' codec can't decode byte 0xff")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / name))}: cannot be read: "):
        listed(tmp_path)


def test_files_without_a_byte_are_refused_or_named_beside_others(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert str(caught.value) == f"{tmp_path}: empty; give at least one row"
    write_rows(tmp_path / "c.jsonl", [{"text": "one"}])
    assert rows_of(tmp_path) == [{"text": "one"}]
    assert empty_files(listed(tmp_path)) == [
        BadRecord(str(tmp_path / name), "byte 0", "the file is empty") for name in ("a.jsonl", "b.jsonl")
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".txt", ".parquet", ".json"])
def test_a_file_that_vanishes_is_a_fault_and_the_next_is_read(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        path = tmp_path / f"{name}{ending}"
        if ending == ".parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": [name]}), path)
        else:
            content = {".csv": b"text\n" + name.encode(), ".txt": name.encode()}.get(ending, json_of(name))
            path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    source = listed(tmp_path)
    (tmp_path / f"a{ending}").unlink()
    bad: list[BadRecord] = []
    rows = read_in_order(source, ["text"], max_bytes=LARGE, report=bad.append)
    assert [record[:2] for record in rows] == [(2, {"text": "b"})]
    assert [record.file for record in bad] == [str(tmp_path / f"a{ending}")]
    assert "cannot be read from here on: [Errno 2] No such file" in bad[0].fault


@pytest.mark.parametrize("ending", ["", *COMPRESS])
def test_a_file_that_became_shorter_gives_what_is_left_and_a_fault(new_file: Any, ending: str) -> None:
    pack = COMPRESS.get(ending, bytes)
    kept = pack(json_of("one", "two"))
    path = new_file(f".jsonl{ending}", kept + pack(json_of("three")))
    source = listed(path)
    path.write_bytes(kept)
    ((_, items),) = items_of(source)
    assert [item.row.get("text") for item in items] == ["one", "two", None]
    assert items[-1].fault == (
        f"cannot be read from here on: the file ends at byte {len(kept)}; it was longer when the run started"
    )


def test_a_fault_of_a_later_extent_is_placed_there(new_file: Any) -> None:
    path = new_file(".jsonl", json_of(*"abcdefgh"))
    source = listed(path)
    path.unlink()
    places = [
        describe_position(extent, item.start, source)
        for extent, items in items_of(source, extent_bytes=30)
        for item in items
    ]
    assert places == [f"byte {start}" for start in range(0, source.num_bytes, 30)]


@pytest.mark.parametrize(
    ("content", "texts", "faults"),
    [
        ("text,label\na,1\nb\nc,1,2\nd,4\n", "ad", ["row 2: 1 values for the 2 columns", "row 3: 3 values for"]),
        (
            'text,label\na,1\n"b,1\nc,3\nd,4\n',
            "acd",
            ["row 2: not CSV: a value that begins with a quote has no closing quote; "],
        ),
        (
            'text,label\na,1\n"b,1\nc,3\n"d",4\ne,5\n',
            "acde",
            ["row 2: not CSV: a value that begins with a quote goes on after its closing quote; "],
        ),
        (
            'text,label\na,1\n"b"x,1\nc,3\n',
            "ac",
            ["row 2: not CSV: a value that begins with a quote goes on after its closing quote; "],
        ),
        (
            "text,label\na,1\nb\rb,1\nc,3\n",
            "ac",
            ["row 2: not CSV: line ends of more than one kind; save the file with one kind of line end"],
        ),
        ("text,label\na,1\n\n\nb,\n", "ab", []),
        ('text,label\na,1\n"b', "a", ["row 2: not CSV: a value that begins with a quote has no closing quote; "]),
    ],
    ids=range(7),
)
def test_a_broken_csv_row_costs_no_other(
    new_file: Any, small_reads: None, content: str, texts: str, faults: list[str]
) -> None:
    path = new_file(".csv", content.encode())
    found, bad = texts_and_faults(path)
    assert found == [*texts]
    assert len(bad) == len(faults)
    assert all(f"{place}: {fault}".startswith(start) for (place, fault), start in zip(bad, faults, strict=True))
    check_resuming(listed(path))
    packed = new_file(".csv.zst", COMPRESS[".zst"](content.encode()))
    assert texts_and_faults(packed) == (found, bad)
    check_resuming(listed(packed))


def test_a_csv_row_in_another_encoding_is_a_fault(new_file: Any) -> None:
    texts, ((position, fault),) = texts_and_faults(new_file(".csv", b"text\na\ncaf\xe9\nc\n"))
    assert (texts, position) == (["a", "c"], "row 2")
    assert fault.startswith("column 'text': not valid Unicode (wrong encoding")


def test_a_csv_file_of_nothing_but_its_first_row_has_no_rows(new_file: Any) -> None:
    assert rows_of(new_file(".csv", b"text\n")) == []
    assert rows_of(new_file(".csv", b"\n\r\n")) == []


def test_a_csv_file_whose_first_row_is_broken_is_one_fault(new_file: Any) -> None:
    texts, ((position, fault),) = texts_and_faults(new_file(".csv", b'"text\na\nb\n'))
    assert (texts, position) == ([], "row 1")
    assert fault.startswith(
        "cannot be read from here on: not CSV: a value that begins with a quote has no closing quote; "
    )


# --- documents too long to hold ---------------------------------------------------------------------------------------

TOO_LONG = "longer than 1 MiB (data.cleaning.max_document_mib)"
HUGE = 50 * MIB


def huge_files() -> Iterator[tuple[str, dict[str, Any], bytes, list[str]]]:
    """Endings, options and contents of files with a record of 50 MiB between two others; the texts of those."""
    fill = b"a" * HUGE
    json_content = json_of("one") + b'{"text": "' + fill + b'"}\n' + json_of("three")
    yield ".jsonl", {}, json_content, ["one", "three"]
    for ending in COMPRESS:
        pack = (lambda data: lzma.compress(data, preset=0)) if ending == ".xz" else COMPRESS[ending]
        yield f".jsonl{ending}", {}, pack(json_content), ["one", "three"]
    yield ".txt", {}, b"one\n" + fill + b"\nthree", ["one", "three"]
    yield (
        ".txt",
        {"documents": "block"},
        b"one\n\n" + (b"a" * 2**14 + b"\n") * (HUGE // 2**14) + b"\nthree",
        ["one", "three"],
    )
    yield ".txt", {"documents": "file"}, fill, []
    yield ".csv", {}, b"text,label\none,1\n" + fill + b",2\nthree,3\n", ["one", "three"]
    yield ".csv.zst", {}, COMPRESS[".zst"](b"text,label\none,1\n" + fill + b",2\nthree,3\n"), ["one", "three"]


@pytest.mark.lengthy
@pytest.mark.parametrize("case", range(10))
def test_a_document_of_50_mib_is_skipped_and_never_held(new_file: Any, case: int) -> None:
    ending, options, content, texts = next(itertools.islice(huge_files(), case, None))
    path = new_file(ending, content)
    del content
    source = listed(path, **options)
    found: list[Item] = []
    tracemalloc.start()
    try:
        extents = source.extents()
        for index in range(len(extents)):
            found += read_extent(source, extents[index], START, ["text"], max_bytes=MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [item.row["text"] for item in found if item.fault is None] == texts
    assert [item.fault for item in found if item.fault is not None] == [TOO_LONG]
    assert peak < 20 * MIB


@pytest.mark.parametrize("ending", ["", ".zst"])
@pytest.mark.parametrize("line", [b"words", b"w" * 200])
def test_a_csv_field_over_many_lines_that_is_too_long_is_one_fault(new_file: Any, line: bytes, ending: str) -> None:
    field = b'"' + b"\n".join([line, b'""quoted""', line] * 20) + b'"'
    content = b"label,text\n1,one\n2," + field + b'\n"3\n",three\n'
    path = new_file(f".csv{ending}", COMPRESS.get(ending, bytes)(content))
    fault = "longer than 9.53674e-05 MiB (data.cleaning.max_document_mib)"
    assert texts_and_faults(path, max_bytes=100) == (["one", "three"], [("row 2", fault)])
    check_resuming(listed(path), max_bytes=100)


@pytest.mark.parametrize("ending", ["", ".zst"])
def test_a_csv_quote_without_an_end_is_one_fault_even_if_it_would_be_too_long(new_file: Any, ending: str) -> None:
    content = b'label,text\n1,one\n2,"two\n' + b"3,more\n" * 30 + b'"4","four"\n'
    path = new_file(f".csv{ending}", COMPRESS.get(ending, bytes)(content))
    texts, ((position, _),) = texts_and_faults(path, max_bytes=100)
    assert (texts, position) == (["one", *["more"] * 30, "four"], "row 2")
    check_resuming(listed(path), max_bytes=100)


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_row_too_long_for_its_table_or_list_is_a_fault(tmp_path: Path, kind: str) -> None:
    texts = ["one", "a" * (MIB + 1), "é" * (MIB // 2 + 1), "a" * MIB]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    found, bad = texts_and_faults(path, max_bytes=MIB)
    assert found == [texts[0], texts[3]]
    assert bad == [("row 2", TOO_LONG), ("row 3", TOO_LONG)]


def test_a_large_csv_file_is_not_held_whole(new_file: Any) -> None:
    path = new_file(".csv", b"text,label\n" + (b"some words," + b"1" * 10_000 + b"\n") * 1000)
    source = listed(path)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_in_order(source, ["text"], max_bytes=LARGE, report=lambda _: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1000
    assert peak < 2 * MIB < 9 * MIB < source.num_bytes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\na b\rc d\re f\r"),
        ("a.csv", "text\rlabel\ra\rb\n"),
        ("a.tsv", "text\tlabel\na\tb\rc\td\n"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\r{"text": "c"}\n'),
        ("a.jsonl", '{"text": "%s"}\r' % ("a" * END_BYTES) + '{"text": "b"}\n{"text": "c"}\r'),
    ],
)
def test_line_ends_of_more_than_one_kind_are_told(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    _, bad = texts_and_faults(tmp_path / name)
    assert any(
        fault.endswith("line ends of more than one kind; save the file with one kind of line end") for _, fault in bad
    )
    assert not any("new-line" in fault for _, fault in bad)


def test_a_quote_that_begins_a_value_is_told_in_the_words_of_its_format(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a b\tx\n"c" d\tx\n')
    _, bad = texts_and_faults(tmp_path / "a.tsv")
    assert [fault.partition(";")[0] for _, fault in bad] == [
        "not TSV: a value that begins with a quote goes on after its closing quote"
    ] * len(bad)
    assert bad
    assert "; set quoting: none where quotes are characters like any other" in bad[0][1]


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
@pytest.mark.parametrize("key", ["t\\u0065xt", "\\u0074ext", "tex\\u0074", "\\u0074\\u0065xt"])
def test_a_key_that_is_there_twice_through_escapes_is_found(tmp_path: Path, ending: str, key: str) -> None:
    row = f'{{"text": "a \\u00e9", "{key}": "b"}}'
    (tmp_path / f"a{ending}").write_text(row if ending == ".jsonl" else f"[{row}]")
    with pytest.raises(DataError, match="more than one column 'text'"):
        texts_and_faults(tmp_path / f"a{ending}")
    once = f'{{"{key}": "a \\u00e9: b"}}'
    (tmp_path / f"a{ending}").write_text(once if ending == ".jsonl" else f"[{once}]")
    assert texts_and_faults(tmp_path / f"a{ending}") == (["a é: b"], [])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv.gz", "a.txt", "a.arrow", "a.json"])
def test_a_pointer_of_git_lfs_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(tmp_path)))
    assert str(caught.value) == (
        f"{tmp_path}/{name}: cannot be read: it is a Git LFS pointer, not the file itself; run `git lfs pull` in its "
        "folder"
    )


def test_text_about_pointers_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a version https://git-lfs.github.com/spec/v1\n")
    assert len(texts_and_faults(tmp_path / "a.txt")[0]) == 1


@pytest.mark.parametrize("name", ["A.CSV", "a.Tsv", "a.JSON", "a.JSONL.GZ", "a.Json.Gz"])
def test_endings_are_known_in_capitals(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    lower = name.lower()
    separator = "\t" if "tsv" in lower else ","
    text = "".join(separator.join(row) + "\n" for row in (rows[0], *(row.values() for row in rows)))
    if "json" in lower:
        text = json.dumps(rows) if ".json." in f"{lower}." else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if lower.endswith(".gz") else text.encode())
    assert rows_of(tmp_path / name, "text", "label") == rows


def test_each_row_of_an_arrow_file_without_the_column_is_told_once(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    table = pyarrow.table({"other": range(7)})
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.arrow").write_bytes(buffer.getvalue())
    (file,) = list_source(Source(path=str(tmp_path / "a.arrow"))).files
    items = [*tables.read_arrow(Extent(file, 3, 7), Position(1, 0, 1), ["text"])]
    assert [(item.start.ordinal, item.row) for item in items] == [(number, {"other": None}) for number in (1, 2, 3)]
