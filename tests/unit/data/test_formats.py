"""Files that do not say themselves how their rows stand in them: other delimiters, no names, rows below a key."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import SequenceClassification
from ted_ds.data.first_rows import first_rows
from ted_ds.data.reading.listing import list_data, list_source, read_extent, read_in_order
from ted_ds.data.reading.records import START, BadRecord
from ted_ds.errors import DataError
from ted_ds.tasks.kind import kind_of
from tests.unit.data.test_reading import check_resuming

MIB = 2**20
COLA = 'gj04\t1\t\tOur friends won\'t buy this.\ngj04\t0\t*\t"They drank the pub.\nks08\t1\t\t"He" said "no".\n'
COLA_COLUMNS = ["source", "label", "annotation", "sentence"]
SQUAD = {
    "version": "2.0",
    "data": [
        {"id": "a", "question": "Who?", "answers": {"text": ["Ada", "she"], "answer_start": [0, 9]}},
        {"id": "b", "question": "When?", "answers": {"text": [], "answer_start": []}},
    ],
}
AS_LISTS = [{"id": "a", "question": "Who?", "answers": [{"text": "Ada"}, {"text": "she"}]}]


def read(path: Path, wanted: list[str], **settings: Any) -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """All rows of a source, and its bad records."""
    bad: list[BadRecord] = []
    records = read_in_order(list_source(Source(path=str(path), **settings)), wanted, max_bytes=MIB, report=bad.append)
    return [record.row for record in records], bad


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


# --- delimiters, quotes, names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ":", " ", "¦", "\x01"])
def test_any_character_may_be_between_values(tmp_path: Path, delimiter: str) -> None:
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter).writerows([["text", "label"], [f"a{delimiter}b, c", "x"], ["d", "y"]])
    rows, bad = read(write(tmp_path / "a.csv", content.getvalue()), ["text", "label"], delimiter=delimiter)
    assert rows == [{"text": f"a{delimiter}b, c", "label": "x"}, {"text": "d", "label": "y"}]
    assert not bad


def test_a_delimiter_that_is_given_is_the_only_one_tried(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,b\n")
    assert read(path, ["text"])[0] == [{"text": "a"}]
    with pytest.raises(DataError, match=r"a\.csv: row 1: no column 'text'; it has text,label\. Set task\.text_column"):
        read(path, ["text"], delimiter=";")


def test_files_without_quoting_read_as_csv_itself_reads_them(tmp_path: Path) -> None:
    rng = random.Random(5)
    words = ['"', '""', 'a "quote', 'b"', "plain", "", "'", ",", "ä漢", '"whole"']
    rows = [[" ".join(rng.choices(words, k=3)) for _ in range(3)] for _ in range(300)]
    content = "\n".join("\t".join(row) for row in [["text", "other", "label"], *rows]) + "\n"
    path = write(tmp_path / "a.tsv", content)
    expected = list(csv.DictReader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE))
    found, bad = read(path, ["text", "label"], quoting="none")
    assert not bad
    assert found == [{"text": row["text"], "label": row["label"]} for row in expected]
    assert len(found) == 300
    assert len(read(path, ["text", "label"])[0]) < 300  # which is why it can be said
    check_resuming(list_source(Source(path=str(path), quoting="none")), ("text", "label"))


def test_a_row_too_long_in_a_file_without_quoting_takes_no_other_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\na\tx\n"' + "b" * 3000 + "\ty\nc\tz\n")
    source = list_source(Source(path=str(path), quoting="none"))
    bad: list[BadRecord] = []
    rows = [record.row["text"] for record in read_in_order(source, ["text"], max_bytes=1000, report=bad.append)]
    assert rows == ["a", "c"]
    assert [record.position for record in bad] == ["row 2"]


@pytest.mark.parametrize("ending", ["tsv", "txt", "data"])
def test_a_file_without_names_is_read_with_those_given(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"train.{ending}", COLA)
    settings = {"columns": COLA_COLUMNS, "quoting": "none", "format": "csv", "delimiter": "\t"}
    rows, bad = read(path, ["sentence", "label"], **settings)
    assert rows == [
        {"sentence": "Our friends won't buy this.", "label": "1"},
        {"sentence": '"They drank the pub.', "label": "0"},
        {"sentence": '"He" said "no".', "label": "1"},
    ]
    assert not bad
    check_resuming(list_source(Source(path=str(path), **settings)), ("sentence", "label"))  # type: ignore[arg-type]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_without_names_what_is_between_values_is_told_by_their_number(tmp_path: Path, delimiter: str) -> None:
    path = write(
        tmp_path / "a.csv", f"a b{delimiter}x\nc, d{delimiter}y\n".replace(", ", " " if delimiter == "," else ", ")
    )
    rows, bad = read(path, ["text"], columns=["text", "label"])
    assert ([row["text"] for row in rows], bad) == (["a b", "c d" if delimiter == "," else "c, d"], [])


def test_names_that_do_not_fit_the_first_row_are_refused_and_later_ones_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tx\nb\ny\tz\n")
    with pytest.raises(
        DataError,
        match=r"a\.tsv: row 1: columns names 3 values, and this row has 2; name each value of a row, and see that "
        r"delimiter and quoting are the file's$",
    ):
        read(path, ["text"], columns=["text", "label", "more"])
    rows, bad = read(path, ["text"], columns=["text", "label"])
    assert [row["text"] for row in rows] == ["a", "y"]
    assert [(record.position, record.fault.partition(";")[0]) for record in bad] == [
        ("row 2", "columns names 2 values, and this row has 1")
    ]


def test_names_that_stand_in_the_file_are_not_taken_for_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tx\n")
    with pytest.raises(
        DataError, match=r"row 1: columns names the values of each row, and this row is those names; leave columns out$"
    ):
        read(path, ["text"], columns=["text", "label"])


def test_a_column_that_is_not_among_the_names_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", COLA)
    with pytest.raises(DataError, match=r"row 1: no column 'text'; it has source, label, annotation, sentence\. Set"):
        read(path, ["text"], columns=COLA_COLUMNS, quoting="none")


def test_the_first_row_without_names_may_be_a_bad_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"a" b,x\nc,y\n')
    rows, bad = read(path, ["text"], columns=["text", "label"])
    assert [row["text"] for row in rows] == ["c"]
    assert [record.position for record in bad] == ["row 1"]


def test_check_looks_into_such_files(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", COLA)
    task = SequenceClassification(
        kind="sequence_classification", labels=["0", "1"], text_column="sentence", max_length=16
    )
    found = first_rows(Source(path=str(path), columns=COLA_COLUMNS, quoting="none"), kind_of(task))
    assert (found.num_rows, dict(found.labels), found.problems) == (3, {"1": 2, "0": 1}, ())


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("field", "content"), [("data", SQUAD), ("result.rows", {"result": {"rows": SQUAD["data"]}})])
def test_rows_may_be_the_list_under_a_key(tmp_path: Path, field: str, content: Any, indent: int | None) -> None:
    path = write(tmp_path / "a.json", json.dumps(content, indent=indent))
    rows, bad = read(path, ["question", "answers.text"], field=field)
    assert rows == [
        {"question": "Who?", "answers.text": ["Ada", "she"]},
        {"question": "When?", "answers.text": []},
    ]
    assert not bad
    source = list_source(Source(path=str(path), field=field))
    assert [file.division for file in source.files] == ["file"]
    check_resuming(source, ("question", "answers.text"))


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        (SQUAD, "rows", r"no list of rows under 'rows'; the file's object has version \(a str\), data \(a list\)$"),
        (SQUAD, "version", r"no list of rows under 'version'; the file's object has"),
        (SQUAD["data"], "version", r"no list of rows under 'version'; the file is a JSON list; leave field out if"),
        ({}, "data", r"no list of rows under 'data'; the file's object has no keys$"),
    ],
)
def test_a_key_without_a_list_is_told(tmp_path: Path, content: Any, field: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"a\.json: .*{words}"):
        read(write(tmp_path / "a.json", json.dumps(content)), ["question"], field=field)


def test_who_has_rows_under_a_key_and_does_not_say_so_is_told_how(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(SQUAD))
    with pytest.raises(
        DataError,
        match=r"no column 'question'; it has version, data \(if its rows are the list under 'data', set field: data\)",
    ):
        read(path, ["question"])


def test_an_object_over_several_lines_is_told_from_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(SQUAD, indent=1))
    with pytest.raises(
        DataError,
        match=r"a\.json: .*one JSON object over several lines; if its rows are a list in it, name the key of that "
        r"list, such as field: data$",
    ):
        list_source(Source(path=str(path)))


# --- dotted paths -----------------------------------------------------------------------------------------------------

NESTED = [
    {"text": "a", "meta": {"label": "x", "more": {"deep": "1"}}, "meta.plain": "own"},
    {"text": "b", "meta": {"label": "y", "more": None}, "meta.plain": "other"},
]


def nested_file(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of a format."""
    if kind == "json":
        return write(folder / "a.json", json.dumps(rows))
    if kind == "jsonl":
        return write(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "a.parquet")
        return folder / "a.parquet"
    with pyarrow.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    return folder / "a.arrow"


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow"])
def test_a_dotted_path_leads_into_a_row(tmp_path: Path, kind: str) -> None:
    path = nested_file(tmp_path, kind, NESTED)
    rows, bad = read(path, ["text", "meta.label", "meta.more.deep", "meta.plain"])
    assert rows == [
        {"text": "a", "meta.label": "x", "meta.more.deep": "1", "meta.plain": "own"},
        {"text": "b", "meta.label": "y", "meta.more.deep": None, "meta.plain": "other"},
    ]
    assert not bad
    assert read(path, ["meta.label"])[0] == [{"meta.label": "x"}, {"meta.label": "y"}]
    check_resuming(list_source(Source(path=str(path))), ("meta.label", "meta.more.deep"))


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow"])
def test_a_list_on_the_way_gives_a_list(tmp_path: Path, kind: str) -> None:
    path = nested_file(tmp_path, kind, AS_LISTS)
    assert read(path, ["question", "answers.text"])[0] == [{"question": "Who?", "answers.text": ["Ada", "she"]}]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("column", ["meta.none", "none.label", "text.label", "meta.label."])
def test_a_path_that_leads_nowhere_is_a_missing_column(tmp_path: Path, kind: str, column: str) -> None:
    path = nested_file(tmp_path, kind, NESTED)
    with pytest.raises(DataError, match=rf"no column '{column}'; it has "):
        read(path, ["text", column])


def test_a_remote_arrow_file_is_read_by_paths_too(tmp_path: Path) -> None:
    import fsspec

    path = nested_file(tmp_path, "arrow", NESTED)
    fsspec.filesystem("memory").pipe_file("/formats/a.arrow", path.read_bytes())
    source = list_source(Source(path="memory://formats/a.arrow"))
    extents = source.extents()
    items = [
        item
        for i in range(len(extents))
        for item in read_extent(source, extents[i], START, ["meta.label"], max_bytes=MIB)
    ]
    assert [item.row for item in items] == [{"meta.label": "x"}, {"meta.label": "y"}]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("row", "named"),
    [
        ('{"text": "a", "meta": {"label": "x", "label": "y"}}', "'meta.label'"),
        ('{"text": "a", "meta": {"label": "x"}, "meta": {"label": "y"}}', "'meta'"),
        ('{"text": "a", "meta": [{"label": "x", "l\\u0061bel": "y"}]}', "'meta.label'"),
    ],
)
def test_a_key_on_the_way_that_is_given_twice_is_told(tmp_path: Path, kind: str, row: str, named: str) -> None:
    path = write(tmp_path / f"a.{kind}", f"[{row}]" if kind == "json" else row)
    with pytest.raises(DataError, match=rf"more than one column {named}; remove or rename all but one$"):
        read(path, ["text", "meta.label"])


# --- what a recipe may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delimiter": ""}, "must be one character, and no quotation mark or line end"),
        ({"delimiter": "\\t"}, r'must be one character, and no quotation mark or line end; a tab is "\\t" in double'),
        ({"delimiter": '"'}, "must be one character, and no quotation mark"),
        ({"delimiter": "\n"}, "must be one character, and no quotation mark"),
        ({"columns": ["a", "a"]}, "columns must be distinct, got"),
        ({"columns": ["a"], "format": "json"}, "columns goes with format: csv, not json; leave one of them out"),
        ({"field": "data", "format": "parquet"}, "field goes with format: json, not parquet; leave one of them out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Source.model_validate({"path": "a", **settings})


@pytest.mark.parametrize(
    ("settings", "kind"), [({"delimiter": ";"}, "csv"), ({"quoting": "none"}, "csv"), ({"columns": ["a"]}, "csv")]
)
def test_settings_of_another_format_than_the_files_are_refused(
    tmp_path: Path, settings: dict[str, Any], kind: str
) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    ((key, value),) = settings.items()
    with pytest.raises(DataError) as caught:
        list_source(Source(path=str(path), **settings))
    assert str(caught.value) == (
        f"{path}: {key}: {value!r} would have no effect, as its files are json; leave {key} out, or set format: {kind} "
        "if that is what they are"
    )


def test_the_form_of_files_is_part_of_what_a_stream_is(tmp_path: Path) -> None:
    from ted_ds.data.stream.settings import SourceSettings

    write(tmp_path / "a.tsv", "text\tlabel\n" + "a\tx\n" * 8)

    def fingerprint(**settings: Any) -> dict[str, Any]:
        listing = list_data(Data(train=[Source(path=str(tmp_path / "a.tsv"), **settings)])).train[0]
        return SourceSettings("a", listing, 1.0, None, None).fingerprint(4)

    plain = fingerprint()
    assert plain == fingerprint(quoting="minimal")
    assert len(plain["listing"]) == 4, "as it was before there was such a thing"
    assert fingerprint(quoting="none") != plain
