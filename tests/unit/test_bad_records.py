"""Records that are skipped are listed, each once, and too many of them stop the run with their places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.data import BadRecords, Data, Source
from ted_ds.config.tasks import CausalLm, SequenceClassification
from ted_ds.data.bad_records import FEWEST_JUDGED, LEDGER_FILE, Ledger, too_many
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data
from ted_ds.data.reading.records import BadRecord
from ted_ds.errors import CheckpointError, DataError
from ted_ds.tasks.kind import kind_of
from tests.streams import open_stream
from tests.tiny import texts, write_rows, write_tokenizer

ONE, TWO, THREE = (BadRecord("a.jsonl", f"byte {number}", "no JSON") for number in (1, 2, 3))


# --- the list ---------------------------------------------------------------------------------------------------------


def test_each_bad_record_is_listed_once_over_restarts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert len(ledger) == 0
    ledger.add([])
    assert not ledger.path.exists(), "no list without a bad record"
    ledger.add([TWO, ONE, TWO])
    ledger.add([ONE])
    later = Ledger(tmp_path)
    later.add([THREE, ONE])
    assert later.path == tmp_path / LEDGER_FILE
    lines = later.path.read_text(encoding="utf-8").splitlines()
    assert [BadRecord(**json.loads(line)) for line in lines] == [TWO, ONE, THREE]
    assert len(later) == 3
    assert later.some() == [ONE, TWO, THREE]


def test_a_list_can_hold_any_name_and_fault(tmp_path: Path) -> None:
    record = BadRecord("a\u2028b\n\udcff.jsonl", "byte 0", 'half a pair \ud800 "')
    Ledger(tmp_path).add([record])
    assert Ledger(tmp_path).some() == [record]


def test_a_line_that_was_only_half_written_is_written_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([ONE, TWO])
    content = ledger.path.read_bytes()
    for length in range(len(content)):
        ledger.path.write_bytes(content[:length])
        again = Ledger(tmp_path)
        assert len(again) == content[:length].count(b"\n")
        again.add([ONE, TWO])
        assert ledger.path.read_bytes() == content


@pytest.mark.parametrize("line", ["junk", "[]", "{}", '{"file": "a", "position": "b", "fault": "c", "more": "d"}'])
def test_a_damaged_list_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    Ledger(tmp_path).add([ONE])
    with (tmp_path / LEDGER_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointError, match=rf"{LEDGER_FILE}: line 2 is damaged \(.*\); remove it"):
        Ledger(tmp_path)


# --- too many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bad", "num_read", "limits", "is_complete", "stops"),
    [
        (0, 0, {"max_fraction": 0, "max_count": 0}, True, False),
        (1, 60, {}, True, True),
        (1, 60, {}, False, False),
        (6, 60, {"max_fraction": 0.1}, True, False),
        (7, 60, {"max_fraction": 0.1}, True, True),
        (FEWEST_JUDGED - 1, FEWEST_JUDGED - 1, {}, False, False),
        (2, FEWEST_JUDGED, {}, False, True),
        (1, FEWEST_JUDGED, {}, False, False),
        (6, 10_000_000, {"max_count": 5}, False, True),
        (5, 10_000_000, {"max_count": 5}, False, False),
        (6, 10, {"max_count": 5, "max_fraction": 1}, False, True),
    ],
)
def test_a_run_stops_for_a_share_or_a_number_of_bad_records(
    num_bad: int, num_read: int, limits: dict[str, Any], is_complete: bool, stops: bool
) -> None:
    reason = too_many(num_bad, num_read, [ONE], BadRecords(**limits), is_complete=is_complete)
    assert (reason is not None) == stops


def test_the_reason_shows_a_few_of_them_and_the_limits() -> None:
    records = [ONE, TWO, THREE, BadRecord("b.csv", "byte 9", "not CSV")]
    assert too_many(4, 60, records, BadRecords(max_fraction=0.05, max_count=9), is_complete=True) == (
        "a.jsonl: byte 1: no JSON; a.jsonl: byte 2: no JSON; a.jsonl: byte 3: no JSON. 4 of 60 records cannot be used, "
        "more than data.bad_records allows (max_fraction 0.05, max_count 9); mend them, or raise the limit"
    )


# --- in a task's data -------------------------------------------------------------------------------------------------

FAULT = "no value in column 'text'; every row needs one"


def write_with_bad_row(path: Path, number: int = 31, count: int = 60) -> Path:
    """Labelled rows of which one has no text."""
    rows: list[dict[str, Any]] = [{"text": text, "label": 0} for text in texts(count)]
    rows[number - 1]["text"] = None
    return write_rows(path, rows)


def start_of_row(path: Path, number: int) -> int:
    return sum(len(line) for line in path.read_bytes().splitlines(keepends=True)[: number - 1])


def opened(folder: Path, kind: str, *paths: Path, **data: Any) -> LabelledData | CorpusData:
    task = (
        CausalLm(kind="causal_lm", sequence_length=4)
        if kind == "causal_lm"
        else SequenceClassification(kind="sequence_classification", labels=["no", "yes"])
    )
    recipe = Data(train=[Source(path=str(path)) for path in paths], heldout_fraction=0.3, **data)
    return kind_of(task).open_data(recipe, write_tokenizer(folder / "tokenizer"), list_data(recipe), max_heldout=1000)


def test_one_bad_row_of_60_is_refused_with_its_file_row_and_fault(tmp_path: Path) -> None:
    path = write_with_bad_row(tmp_path / "a.jsonl")
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "labelled", path)
    assert str(caught.value) == (
        f"{path}: row 31: {FAULT}. 1 of 60 records cannot be used, more than data.bad_records allows "
        "(max_fraction 0.001, max_count 1000); mend them, or raise the limit"
    )


def test_labelled_rows_go_on_without_as_many_bad_ones_as_are_allowed(tmp_path: Path) -> None:
    path = write_with_bad_row(tmp_path / "a.jsonl")
    data = opened(tmp_path, "labelled", path, bad_records={"max_fraction": 0.1})
    assert data.bad_records == [BadRecord(str(path), "row 31", FAULT)]
    whole = opened(
        tmp_path,
        "labelled",
        write_rows(
            tmp_path / "b.jsonl",
            [{"text": text, "label": 0} for number, text in enumerate(texts(60), start=1) if number != 31],
        ),
    )
    assert data.heldout == whole.heldout


@pytest.mark.parametrize("number", [1, 31])
def test_a_corpus_goes_on_without_a_bad_row_and_lists_it_once(tmp_path: Path, number: int) -> None:
    path = write_with_bad_row(tmp_path / "a.jsonl", number)
    data = opened(tmp_path, "causal_lm", path, bad_records={"max_fraction": 0.1})
    place = f"byte {start_of_row(path, number)}"
    assert data.bad_records == [BadRecord(str(path), place, FAULT)]
    assert data.heldout


def test_a_corpus_is_named_alike_when_it_is_opened_and_when_it_is_streamed(tmp_path: Path) -> None:
    data = opened(tmp_path, "causal_lm", write_with_bad_row(tmp_path / "a.jsonl"), bad_records={"max_fraction": 0.1})
    assert isinstance(data, CorpusData)
    stream = open_stream(data)
    next(stream)
    assert stream.take_bad_records() == data.bad_records != []


@pytest.mark.parametrize("limits", [{"max_count": 0}, {"max_count": 0, "max_fraction": 1}])
def test_a_corpus_is_refused_for_more_bad_rows_than_are_allowed(tmp_path: Path, limits: dict[str, Any]) -> None:
    path = write_with_bad_row(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=rf"a\.jsonl: byte \d+: {FAULT}\. Bad records on the way to one sequence: 1"):
        opened(tmp_path, "causal_lm", path, bad_records=limits)


def test_a_large_corpus_is_refused_for_the_share_of_its_bad_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(1000)]
    rows[500]["text"] = rows[600]["text"] = None
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"2 of 1000 records cannot be used, more than data\.bad_records allows"):
        opened(tmp_path, "causal_lm", path)
    assert len(opened(tmp_path, "causal_lm", path, bad_records={"max_fraction": 0.002}).bad_records) == 2


@pytest.mark.parametrize("kind", ["labelled", "causal_lm"])
def test_an_empty_file_beside_others_counts_as_a_bad_record(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "a.jsonl", [{"text": text, "label": 0} for text in texts(60)])
    (folder / "b.jsonl").touch()
    data = opened(tmp_path, kind, folder, bad_records={"max_fraction": 0.1})
    assert data.bad_records == [BadRecord(str(folder / "b.jsonl"), "byte 0", "the file is empty")]


@pytest.mark.parametrize("kind", ["labelled", "causal_lm"])
def test_bad_rows_of_several_files_are_named_by_their_place_in_the_file(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    paths = [write_with_bad_row(folder / name, 2) for name in ("a.jsonl", "b.jsonl")]
    data = opened(tmp_path, kind, folder, bad_records={"max_fraction": 0.1})
    assert data.bad_records == [BadRecord(str(path), f"byte {start_of_row(path, 2)}", FAULT) for path in paths]


def test_a_phase_is_judged_by_its_own_share_and_all_phases_by_their_number(tmp_path: Path) -> None:
    limits = BadRecords(max_fraction=0.001, max_count=600)
    records = [BadRecord("a", f"byte {number}", "broken") for number in range(601)]
    ledger = Ledger(tmp_path)
    ledger.begin_phase()
    ledger.add(records[:500])
    assert ledger.judge(1_000_000, limits) is None
    assert "500 of 2000 records" in (ledger.judge(2000, limits) or "")
    ledger.begin_phase()
    assert ledger.judge(2000, limits) is None, "none of these 2000 was bad"
    ledger.add(records[:3])
    assert "3 of 2000 records" in (ledger.judge(2000, limits) or "")
    ledger.add(records)
    assert "601 of 9000000 records" in (ledger.judge(9_000_000, limits) or "")
