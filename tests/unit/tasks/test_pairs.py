"""Texts that come in pairs: how they are named, read, kept apart and shown, and what is refused or skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from ted_ds.config.data import Data, Source
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import Regression, SequenceClassification
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.first_rows import first_rows
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import samples_sha256
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Example, Sample
from ted_ds.errors import ConfigError, DataError
from ted_ds.planning.plan_in_words import describe
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.tokenizer import train_from_recipe
from ted_ds.vetting.batch_text import first_batch
from ted_ds.vetting.composition import mixed_lengths
from tests.refusals import without_overrides
from tests.task_kinds import plan_recipe, samples_of
from tests.tiny import (
    LABELS,
    recipe_dict,
    write_model,
    write_pairs,
    write_recipe,
    write_rows,
    write_run,
    write_tokenizer,
)

COLUMNS = ["first", "second"]
TASK = SequenceClassification(kind="sequence_classification", labels=[*LABELS], text_column=COLUMNS, max_length=16)
ROW = {"first": "ba be", "second": "bi", "label": "negative"}


def open_pairs(path: Path, **settings: Any) -> LabelledData:
    encoder = write_tokenizer(path.parent / "tokenizer", encoder=True)
    data = Data(train=[Source(path=str(path))], **settings)
    return LabelledData(data, kind_of(TASK), encoder, list_data(data), max_heldout=100)  # type: ignore[arg-type]


def pair_run(folder: Path, family: str = "bert") -> Path:
    """A run on pairs; its recipe."""
    write_run(folder, kind="sequence_classification", family=family)
    write_pairs(folder / "train.jsonl")
    recipe = recipe_dict(folder, kind="sequence_classification")
    recipe["task"]["text_column"] = COLUMNS
    return write_recipe(folder / "recipe.yaml", recipe)


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["[a]", "[a, a]", "[a, b, c]", "[a, 1]", "7", "{a: b}", "[]"])
def test_a_text_column_is_one_or_two(tmp_path: Path, column: str) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [f"task.text_column={column}"])
    assert without_overrides(str(caught.value)).endswith(
        ": must be a column, or [first, second] with two columns for texts that come in pairs"
    )
    assert f"{recipe}: task.text_column: " in without_overrides(str(caught.value))


def test_every_task_with_a_head_for_texts_takes_pairs(tmp_path: Path) -> None:
    number = Regression(kind="regression", target_columns=["score"], text_column=COLUMNS)
    kind: Any = kind_of(number)
    assert (kind.columns, kind.num_texts) == (["first", "second", "score"], 2)
    assert kind.read({**ROW, "score": 3}, where="", declared={}) == [Example("ba be", [3.0], "bi")]
    for name in ("soft_label_classification", "multi_label_classification"):
        recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind=name))
        task = load_recipe(recipe, ["task.text_column=[first, second]"]).task
        assert kind_of(task).columns == ["first", "second", "label"]


def test_a_tokenizer_is_not_trained_on_pairs(tmp_path: Path) -> None:
    recipe = pair_run(tmp_path)
    content = recipe.read_text(encoding="utf-8") + "tokenizer: {vocab_size: 300}\n"
    recipe.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="the rows of a sequence_classification are no texts to train one on"):
        train_from_recipe(str(recipe), [])


# --- rows -------------------------------------------------------------------------------------------------------------


def test_pairs_are_read_as_the_tokenizer_joins_them(tmp_path: Path) -> None:
    data = open_pairs(write_pairs(tmp_path / "a.jsonl"), heldout_fraction=0.3)
    assert data.has_token_types
    tokenizer = write_tokenizer(tmp_path / "tokenizer", encoder=True)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = [
        Sample(whole["input_ids"], LABELS.index(row["label"]), token_types=whole["token_type_ids"])
        for row in rows
        if not is_heldout(f"{row['first']}\0{row['second']}", 0.3)
        for whole in [tokenizer(row["first"], row["second"], truncation=True, max_length=16)]
    ]
    assert [Sample(one.input_ids, one.label, token_types=one.token_types) for one in data.train] == expected
    assert len(data.heldout) == len(rows) - len(expected) > 5
    assert data.text_ends == (
        "before each text '[CLS]' (3) (as the tokenizer's own encode does), behind it '[SEP]' (4), between the two of "
        "a pair '[SEP]' (4)"
    )


def test_what_is_held_out_is_decided_by_both_texts(tmp_path: Path) -> None:
    # one first text with many second ones, and the other way round: neither side alone may decide
    rows = [{"first": "ba", "second": f"be {index}", "label": 0} for index in range(60)]
    rows += [{"first": f"be {index}", "second": "ba", "label": 1} for index in range(60)]
    data = open_pairs(write_rows(tmp_path / "a.jsonl", rows), heldout_fraction=0.3)
    for label in (0, 1):
        assert 8 < sum(sample.label == label for sample in data.heldout) < 40
    copies = open_pairs(write_rows(tmp_path / "b.jsonl", [*rows, *rows]), heldout_fraction=0.3)
    assert len(copies.heldout) == 2 * len(data.heldout)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"second": None}, "no value in column 'second'; every row needs one"),
        ({"second": " "}, "column 'second' holds ' '; a pair with one side missing"),
        ({"first": ""}, "column 'first' holds ''; a pair with one side missing"),
        ({"second": 7}, "column 'second' holds 7; it must be text"),
        ({"second": "half \ud800"}, "column 'second': not valid Unicode"),
        ({"second": "be" * 2**19 + "b"}, "longer than 1 MiB"),
    ],
)
def test_a_pair_with_one_side_missing_is_a_bad_record(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = write_pairs(tmp_path / "a.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**ROW, **change}) + "\n")
    settings: dict[str, Any] = {"heldout_fraction": 0.3, "cleaning": {"max_document_mib": 1}}
    data = open_pairs(path, bad_records={"max_fraction": 0.1}, **settings)
    (bad,) = data.bad_records
    assert (bad.position, bad.fault.startswith(fault)) == ("row 61", True)
    with pytest.raises(DataError, match=r"1 of 61 records cannot be used, more than data\.bad_records allows"):
        open_pairs(path, **settings)


def test_the_second_column_must_be_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"first": "ba", "label": 0}])
    with pytest.raises(DataError, match=r"row 1: no column 'second'; it has first, label\. Set task\.text_column"):
        open_pairs(path)


def test_the_first_rows_tell_both_texts_and_count_pairs_with_one_side_missing(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "second": "bo bu"}, {**ROW, "second": ""}, {**ROW, "first": None}]
    found = first_rows(Source(path=str(write_rows(tmp_path / "a.jsonl", rows))), kind_of(TASK))
    assert found.problems == ()
    assert found.types == (("first", "text"), ("second", "text"), ("label", "text"))
    assert [bad.fault for bad in found.bad_records] == [
        "column 'second' holds ''; a pair with one side missing",
        "no value in column 'first'; every row needs one",
    ]
    assert found.characters == (8, 11, 11)  # of both, and what stands between them


def test_token_types_tell_samples_apart() -> None:
    types = [None, [0, 1, 1], [0, 0, 1]]
    assert len({samples_sha256([Sample([5, 6, 7], 0, token_types=one)]) for one in types}) == 3
    assert samples_sha256([Sample([5], 0)]) == samples_sha256([Sample([5], 0, token_types=None)])


# --- looked at --------------------------------------------------------------------------------------------------------


def test_a_batch_of_pairs_is_shown_with_what_stands_between_them(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, encoder=True)
    kind: Any = kind_of(TASK)
    samples = samples_of(kind, tokenizer, [Example("ba be", 0, "bi")])
    batch = Collator(0, "class", with_token_types=True)(samples)
    assert first_batch(batch, tokenizer, kind)[1] == "  [CLS] ba be [SEP] bi [SEP]  -> negative"


def test_the_beginning_of_a_pair_keeps_its_token_types() -> None:
    samples = [Sample(list(range(5, 5 + n)), 0, token_types=[0] * (n // 2) + [1] * (n - n // 2)) for n in (9, 4, 6)]
    for sample in mixed_lengths(samples):
        assert sample.token_types is not None
        assert len(sample.token_types) == len(sample.input_ids)


def test_check_says_what_stands_between_the_two(tmp_path: Path) -> None:
    recipe, plan = plan_recipe(str(pair_run(tmp_path)), [])
    shown = describe(recipe, plan, num_ranks=1)
    assert "data.train[0] 1 file; first 60 rows: first (text), second (text), label (text); texts of" in shown
    assert "behind it '[SEP]' (4), between the two of a pair '[SEP]' (4)" in shown
    assert "WARN" not in shown


def test_a_tokenizer_that_puts_nothing_between_two_texts_is_a_doubt(tmp_path: Path) -> None:
    _, plan = plan_recipe(str(pair_run(tmp_path, "gpt2")), [])
    assert plan.doubts == (
        "teacher.path: its tokenizer puts nothing between the two texts of a pair: where the second begins is for the "
        "model to find; end the first ones in the data with a mark of your own",
    )
    _, plan = plan_recipe(str(tmp_path / "recipe.yaml"), ["task.text_column=first"])
    assert plan.doubts == ()


def test_types_that_a_model_has_no_embedding_of_are_refused(tmp_path: Path) -> None:
    recipe = pair_run(tmp_path)
    file = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(  # as XLNet has it
        single="[CLS]:2 $A:0", pair="[CLS]:2 $A:0 $B:1", special_tokens=[("[CLS]", 3)]
    )
    tokenizer.save(str(file))
    message = (
        r"teacher\.path: the teacher's tokenizer gives tokens of a pair the type 2, but the model tells types 0\.\.1 "
        r"apart \(type_vocab_size in its config\.json\); use the tokenizer it was trained with$"
    )
    with pytest.raises(ConfigError, match=message):
        plan_recipe(str(recipe), [])
    plan_recipe(str(recipe), ["task.text_column=first"])
    write_model(tmp_path / "three", "bert", labels=LABELS, type_vocab_size=3)
    (tmp_path / "three" / "tokenizer.json").write_bytes(file.read_bytes())
    plan_recipe(str(recipe), [f"teacher.path={tmp_path / 'three'}"])
