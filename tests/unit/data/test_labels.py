"""What rows say about their texts: read for each kind of task, refused in which words, and counted as what."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import MultiLabelClassification, Regression, SequenceClassification, SoftLabelClassification
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import DataError
from ted_ds.tasks.kind import kind_of
from tests.refusals import without_overrides
from tests.task_kinds import read_label
from tests.tiny import texts, write_rows, write_tokenizer

LABELS = ["sad", "glad", "mad"]
ONE = SequenceClassification(kind="sequence_classification", labels=LABELS)
SOFT = SoftLabelClassification(kind="soft_label_classification", labels=LABELS)
MANY = MultiLabelClassification(kind="multi_label_classification", labels=LABELS)
NUMBER = Regression(kind="regression")
NUMBERS = Regression(kind="regression", target_columns=["joy", "anger"])


def read(task: Any, value: Any) -> Any:
    return read_label(task, {"label": value}, where="a.jsonl: row 7")


def refusal(task: Any, value: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(task, value)
    return without_overrides(str(caught.value))


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"), [("sad", 0), ("mad", 2), (0, 0), (2, 2), (1.0, 1), ("0", 0), ("2.0", 2)]
)
def test_one_label_is_a_name_or_an_id(value: Any, expected: int) -> None:
    assert read(ONE, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], [0.0, 0.0, 0.0]),
        (["mad"], [0.0, 0.0, 1.0]),
        ([0, "mad"], [1.0, 0.0, 1.0]),
        (["mad", "sad", "mad", 2], [1.0, 0.0, 1.0]),
        ((1,), [0.0, 1.0, 0.0]),
        ('["mad", 0]', [1.0, 0.0, 1.0]),
        ("[]", [0.0, 0.0, 0.0]),
    ],
)
def test_several_labels_are_a_yes_or_no_for_each(value: Any, expected: list[float]) -> None:
    assert read(MANY, value) == expected


@pytest.mark.parametrize("value", [[0.2, 0.5, 0.3], [1, 0, 0], ["0.2", "0.5", "0.3"], [0.3333, 0.3333, 0.3333]])
def test_a_distribution_has_a_sum_of_one(value: list[Any]) -> None:
    read_ = read(SOFT, value)
    assert math.isclose(sum(read_), 1.0, abs_tol=1e-15)
    total = sum(float(one) for one in value)
    assert read_ == pytest.approx([float(one) / total for one in value], abs=1e-15)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (-2.5, -2.5), ("3e-2", 0.03), (0, 0.0), (-100.5, -100.5)])
def test_a_target_is_a_number_or_its_text(value: Any, expected: float) -> None:
    assert read(NUMBER, value) == [expected]


def test_several_targets_come_in_the_order_of_their_columns() -> None:
    assert read_label(NUMBERS, {"anger": 2, "joy": 1}, where="x") == [1.0, 2.0]


def columns_of(task: Any) -> list[str]:
    text, *labels = kind_of(task).columns
    assert text == "text"
    return labels


def test_the_columns_with_labels_are_those_of_the_task() -> None:
    assert columns_of(NUMBERS) == ["joy", "anger"]
    assert columns_of(NUMBER) == columns_of(ONE) == columns_of(SOFT) == columns_of(MANY) == ["label"]
    assert columns_of(SequenceClassification(kind="sequence_classification", labels=LABELS, label_column="y")) == ["y"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["bad", 3, -1, 0.5, "01", "NaN", "null", True, {"a": 1}])
def test_an_unknown_label_is_refused_with_those_known(value: Any) -> None:
    assert refusal(ONE, value) == (
        f"a.jsonl: row 7: label {value!r} is unknown; use one of ['sad', 'glad', 'mad'] or its id 0..2"
    )


@pytest.mark.parametrize("value", ["bad", 3, -1, "0.5"])
def test_an_unknown_label_among_several_is_refused(value: Any) -> None:
    assert refusal(MANY, [0, value]) == (
        f"a.jsonl: row 7: label {value!r} is unknown; use one of ['sad', 'glad', 'mad'] or its id 0..2"
    )


@pytest.mark.parametrize("task", [SOFT, MANY], ids=lambda task: task.kind)
@pytest.mark.parametrize("value", ["sad", "[0, 1", "1", 1, 0.5, {"sad": 1}])
def test_a_label_that_is_no_list_is_refused_where_a_list_is_needed(task: Any, value: Any) -> None:
    assert refusal(task, value) == f"a.jsonl: row 7: label {value!r}: {task.kind} needs a list in column 'label'"


@pytest.mark.parametrize(
    "value",
    [[], [0.5, 0.5], [0.25] * 4, [1.2, -0.2, 0.0], [0.0, 0.0, 0.0], [0.2, 0.5, 0.2], [0.5, 0.4, 0.102], [2, 3, 1]],
)
def test_what_is_no_distribution_over_the_labels_is_refused(value: list[float]) -> None:
    assert refusal(SOFT, value) == (
        f"a.jsonl: row 7: label {value!r}: give 3 probabilities, one for each of ['sad', 'glad', 'mad'], none below 0, "
        "with a sum of 1"
    )


@pytest.mark.parametrize("value", ["high", "inf", math.inf, -math.inf, True, [1.0], "1,5", "1_000", 10**400])
def test_a_target_that_is_no_finite_number_is_refused(value: Any) -> None:
    assert refusal(NUMBER, value) == (
        f"a.jsonl: row 7: column 'label': {value!r} is not a finite number; give one, or nothing where there is none"
    )


@pytest.mark.parametrize("value", ["high", math.nan, math.inf, False, None])
def test_a_probability_that_is_no_finite_number_is_refused(value: Any) -> None:
    assert refusal(SOFT, [0.5, value, 0.5]) == (
        f"a.jsonl: row 7: column 'label': {value!r} is not a finite number; give one, or nothing where there is none"
    )


def test_the_target_that_is_wrong_is_named_by_its_column() -> None:
    with pytest.raises(DataError, match=re.escape("x: column 'anger': 'low' is not a finite number")):
        read_label(NUMBERS, {"joy": 1.0, "anger": "low"}, where="x")


# --- from files to batches --------------------------------------------------------------------------------------------


def open_rows(folder: Path, task: Any, rows: list[dict[str, Any]]) -> LabelledData:
    path = write_rows(folder / "a.jsonl", rows)
    data = Data(train=[Source(path=str(path))], heldout_fraction=0.3)
    return LabelledData(data, kind_of(task), write_tokenizer(folder / "tokenizer"), list_data(data), max_heldout=100)


VALUES = {
    "sequence_classification": (["sad", "mad"], [0, 2]),
    "soft_label_classification": ([[0.5, 0.25, 0.25], [0, 0, 1]], [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]),
    "multi_label_classification": ([[], ["glad", 2]], [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    "regression": ([-3, 2.5], [[-3.0], [2.5]]),
}


@pytest.mark.parametrize("task", [ONE, SOFT, MANY, NUMBER], ids=lambda task: task.kind)
def test_labels_go_from_files_to_batches(tmp_path: Path, task: Any) -> None:
    given, expected = VALUES[task.kind]
    label_of = dict(zip(texts(20), itertools.cycle(given)))
    data = open_rows(tmp_path, task, [{"text": text, "label": label} for text, label in label_of.items()])
    samples = [*data.heldout, *data.train]
    assert sorted([sample.label for sample in samples], key=str) == sorted(expected * 10, key=str)
    labels = "class" if task.kind == "sequence_classification" else "numbers"
    batch = Collator(pad_id=0, labels=labels, num_outputs=task.num_outputs)(samples)
    assert batch.labels.tolist() == [sample.label for sample in samples]
    assert batch.labels.is_floating_point() == (labels == "numbers")


@pytest.mark.parametrize("task", [ONE, SOFT, MANY, NUMBER], ids=lambda task: task.kind)
def test_a_wrong_label_is_refused_with_its_file_and_row(tmp_path: Path, task: Any) -> None:
    good, _ = VALUES[task.kind]
    wrong = {
        "sequence_classification": "bad",
        "soft_label_classification": [0.5, 0.5, 0.5],
        "multi_label_classification": [7],
        "regression": "bad",
    }[task.kind]
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / 'a.jsonl'))}: row 3: "):
        open_rows(tmp_path, task, [{"text": "ba", "label": label} for label in (good[0], good[0], wrong)])


def test_a_file_without_a_target_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: no column 'anger'; it has text, joy"):
        open_rows(tmp_path, NUMBERS, [{"text": "ba", "joy": 1}])


def test_the_message_of_a_missing_target_column_names_the_key_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.target_columns"):
        open_rows(tmp_path, NUMBERS, [{"text": "ba", "joy": 1}])


def test_a_row_without_some_of_its_targets_has_the_others(tmp_path: Path) -> None:
    rows = [{"text": text, "joy": 1, "anger": None if text < "k" else 2} for text in texts(20)]
    data = open_rows(tmp_path, NUMBERS, rows)
    labels = [sample.label for sample in (*data.train, *data.heldout)]
    assert {str(label) for label in labels} == {"[1.0, nan]", "[1.0, 2.0]"}
    assert data.num_unlabelled == 0


# --- names that look like something else ------------------------------------------------------------------------------


def named(*labels: str, **changes: Any) -> SequenceClassification:
    return SequenceClassification(kind="sequence_classification", labels=list(labels), **changes)


@pytest.mark.parametrize(
    ("labels", "value", "expected"),
    [
        (["1", "2", "3"], "3", 2),
        (["1", "2", "3"], 3, 2),
        (["1", "2", "3"], 3.0, 2),
        (["1", "2", "3"], "3.0", 2),
        (["0", "1"], 1, 1),
        (["1", "0"], 1, 0),
        (["1.0", "2.0"], 2.0, 1),
        (["01", "02"], "02", 1),
        (["-1", "0", "1"], -1, 0),
        (["-1", "0", "1"], "1", 2),
        (["10", "20"], 20, 1),
        (["10", "20"], 1, 1),
        (["true", "false"], "false", 1),
        (["true", "false"], False, 1),
        (["True", "False"], False, 1),
        (["null", "NaN", "-100"], "NaN", 1),
        (["null", "NaN", "-100"], -100, 2),
        (["2024-01-01", "1e3"], "1e3", 1),
    ],
)
def test_names_are_compared_as_text_before_anything_is_a_number(labels: list[str], value: Any, expected: int) -> None:
    assert read(named(*labels), value) == expected


@pytest.mark.parametrize(
    ("labels", "value"), [(["1", "2", "3"], 0), (["1", "2", "3"], "0"), (["01", "02"], 1), (["1.0", "0.0", "x"], 2)]
)
def test_where_a_name_is_another_labels_id_no_ids_are_read(labels: list[str], value: Any) -> None:
    assert refusal(named(*labels), value) == (
        f"a.jsonl: row 7: label {value!r} is unknown; use one of {labels}, not an id: {labels[0]!r} among them is a "
        "number, and another one than its id"
    )


def test_names_of_several_labels_may_be_numbers_too() -> None:
    task = MultiLabelClassification(kind="multi_label_classification", labels=["2", "1", "7"])
    for value in ([1, 7], ["1", "7"], "[1, 7]", '["7", "1"]', [7.0, 1.0]):
        assert read(task, value) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [[0.0, 1.0, 0.0], [0, 1, 0], [1, 1, 1], "[0, 0, 1]", [0.5, 0.2]])
def test_a_number_for_every_label_is_no_list_of_those_that_hold(value: Any) -> None:
    assert "list the names or ids of the labels that hold, each once, not a number for every label" in refusal(
        MANY, value
    )


def test_numbers_in_a_recipe_are_names_and_what_is_no_text_is_refused() -> None:
    assert named(*[1, 2, 3]).labels == ["1", "2", "3"]  # type: ignore[arg-type]
    for name in (True, 1.5, None):
        with pytest.raises(ValidationError, match="is no text; put each name in quotes"):
            named("a", name)  # type: ignore[arg-type]


# --- names that the data have -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (["mad", "sad", "glad"], 0, 2),
        (["mad", "sad", "glad"], 2.0, 1),
        (["mad", "sad", "glad"], "1", 0),
        (["mad", "sad", "glad"], "glad", 1),
        (["glad", "odd", "sad"], 2, 0),
        (["mad", "sad", "glad"], -1, None),
        (["mad", "sad", "glad"], None, None),
    ],
)
def test_an_id_is_the_name_that_the_data_declare_for_it(declared: list[str], value: Any, expected: int | None) -> None:
    assert read_label(ONE, {"label": value}, where="", declared={"label": declared}) == expected


def test_ids_in_a_list_are_the_names_that_the_data_declare() -> None:
    declared = {"label": ["mad", "sad", "glad"]}
    assert read_label(MANY, {"label": [0, 1]}, where="", declared=declared) == [1.0, 0.0, 1.0]


def test_a_declared_name_that_the_task_lacks_is_refused_with_both_orders() -> None:
    with pytest.raises(DataError) as caught:
        read_label(ONE, {"label": 1}, where="a: row 1", declared={"label": ["sad", "unhappy"]})
    assert without_overrides(str(caught.value)) == (
        "a: row 1: label 1 is 'unhappy' to the data, which declare ['sad', 'unhappy']; task.labels are ['sad', 'glad', "
        "'mad']. Give task.labels the same names, in the order of the model's ids, or set task.data_labels to what the "
        "data call each of task.labels, in their order"
    )


def test_the_data_may_call_labels_otherwise() -> None:
    task = named("NEGATIVE", "POSITIVE", data_labels=["neg", "pos"])
    assert [read(task, value) for value in ("pos", "neg", 1)] == [1, 0, 1]
    assert read_label(task, {"label": 0}, where="", declared={"label": ["pos", "neg"]}) == 1
    with pytest.raises(DataError, match="label 'POSITIVE' is unknown; use one of"):
        read(task, "POSITIVE")
    for wrong, message in (
        (["neg"], "data_labels has 1 name, labels has 2"),
        (["a", "a"], "data_labels must be dist"),
    ):
        with pytest.raises(ValidationError, match=message):
            named("NEGATIVE", "POSITIVE", data_labels=wrong)


# --- rows without a label ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", -100, -100.0, "-100", math.nan])
@pytest.mark.parametrize("task", [ONE, SOFT, MANY, NUMBER], ids=lambda task: task.kind)
def test_nothing_and_minus_a_hundred_are_no_label(task: Any, value: Any) -> None:
    assert read(task, value) is None


def test_no_label_is_none_of_several() -> None:
    for value in ([0, None], ["sad", -100]):
        with pytest.raises(DataError, match="one of them is none; list those that hold, or none at all"):
            read(MANY, value)


def test_one_of_several_targets_may_be_missing() -> None:
    joy, anger = read_label(NUMBERS, {"joy": 1, "anger": None}, where="")  # type: ignore[misc]
    assert (joy, math.isnan(anger)) == (1.0, True)
    assert read_label(NUMBERS, {"joy": "nan", "anger": -100}, where="") is None


def test_a_text_without_tokens_is_refused(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    source = Source(path=str(write_rows(tmp_path / "a.jsonl", [{"text": " ", "label": 0}])))
    data = Data(train=[source], evaluation=[source])
    with pytest.raises(DataError, match=r"a\.jsonl: row 1: column 'text' holds ' '; there is nothing in it to predict"):
        LabelledData(data, kind_of(ONE), tokenizer, list_data(data), max_heldout=9)


PAIR = MultiLabelClassification(kind="multi_label_classification", labels=["bad", "good"])


@pytest.mark.parametrize("value", [[1, 0], [0, 1], "[0, 1]", ["1", "0"], [1, "0"], ["1.0", 0]])
def test_a_yes_or_no_for_each_of_two_labels_is_not_taken_for_ids(value: Any) -> None:
    assert refusal(PAIR, value).endswith(
        ": as many numbers 0 or 1 as there are labels may be ids, or a yes or no for each; list the names of those "
        "that hold, such as ['bad']"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [([0], [1, 0]), ([1], [0, 1]), ([], [0, 0]), (["bad", "good"], [1, 1]), (["good", 0], [1, 1])],
)
def test_ids_of_two_labels_are_read(value: Any, expected: list[float]) -> None:
    assert read(PAIR, value) == expected


def test_both_ids_of_two_labels_are_read_where_the_data_say_that_they_are_ids() -> None:
    row = {"label": [0, 1]}
    assert read_label(PAIR, row, where="here", declared={"label": ["good", "bad"]}) == [1, 1]
    named = PAIR.model_copy(update={"labels": ["0", "1"]})
    assert read_label(named, {"label": ["1", "0"]}, where="here") == [1, 1]


@pytest.mark.parametrize("value", [["sad"], [0], []])
def test_a_list_is_not_taken_for_one_label(value: Any) -> None:
    message = f"a.jsonl: row 7: label {value!r} is a list, where one name or id is wanted; write it without [ ]"
    assert refusal(ONE, value) == refusal(MANY, ["sad", value]) == message


@pytest.mark.parametrize(
    "value", [[None, None, None], "[null, null, null]", [math.nan, math.nan, math.nan], [-100] * 3]
)
def test_probabilities_that_are_all_nothing_are_told_how_to_be_written(value: Any) -> None:
    assert refusal(SOFT, value).endswith(
        ": no probability at all; for a row without a label write null, or nothing, in the place of the list"
    )
