"""Questions with several answers: how rows are read, told and shown, what is refused, and what models make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForMultipleChoice

from ted_ds.config.data import Data, Source
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import MultipleChoice
from ted_ds.data.first_rows import first_rows
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import samples_sha256
from ted_ds.data.loader import Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import ConfigError, DataError
from ted_ds.models.choices import choice_probes, choose_among_rows
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.planning.plan_in_words import describe
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.multiple_choice import Question, lettered
from ted_ds.vetting.batch_text import first_batch
from ted_ds.vetting.composition import mixed_lengths
from tests.task_kinds import plan_recipe, samples_of
from tests.tiny import write_labelled, write_model, write_rows, write_run, write_tokenizer

COLUMNS: dict[str, Any] = {"kind": "multiple_choice", "choice_columns": ["ending0", "ending1", "ending2"]}
SWAG: dict[str, Any] = {**COLUMNS, "text_column": "sent1", "stem_column": "sent2"}
LIST: dict[str, Any] = {"kind": "multiple_choice", "list_column": "options", "num_choices": 3}
LETTERED: dict[str, Any] = {"kind": "multiple_choice", "rows": "lettered", "text_column": "input", "num_choices": 3}
ROW = {"text": "ba be", "ending0": "bi", "ending1": "bo bu", "ending2": "ca", "label": 1}


def read(settings: dict[str, Any], row: dict[str, Any], **declared: Any) -> Question:
    kind: Any = kind_of(MultipleChoice(**settings))
    (found,) = kind.read(row, where="a.jsonl: row 7", declared=declared)
    return found


def question(text: str, label: int | None, *choices: str) -> Question:
    return Question(text, label, None, list(choices), 3)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_choices_stand_in_columns_of_their_own_or_in_a_list() -> None:
    assert read(COLUMNS, ROW) == question("ba be", 1, "bi", "bo bu", "ca")
    row = {"sent1": "ba", "sent2": "be", "ending0": "bi", "ending1": "bo", "ending2": "ca", "label": 2}
    assert read(SWAG, row) == question("ba", 2, "be bi", "be bo", "be ca")
    for options in (["bi", "bo", "ca"], '["bi", "bo", "ca"]'):
        assert read(LIST, {"text": "ba", "options": options, "label": "C"}) == question("ba", 2, "bi", "bo", "ca")


@pytest.mark.parametrize(
    "text",
    [
        "What A: is it?\n\n A: more hair\n B: less, or so\n C: none",
        "What A: is it? A: more hair; B: less, or so; C: none.",
        "What A: is it? (A) more hair (B) less, or so (C) none",
        "What A: is it?\nA. more hair\nB. less, or so\nC. none",
    ],
)
def test_letters_tell_choices_apart_within_one_text(text: str) -> None:
    found = lettered(text, 3)
    assert found[0] == "What A: is it?"
    assert [one.rstrip(".") for one in found[1]] == ["more hair", "less, or so", "none"]
    messages = [{"role": "system", "content": "A: x B: y C: z"}, {"role": "user", "content": text}]
    row = {"input": messages, "label": "B"}
    assert read(LETTERED, row).choices == found[1]
    assert read(LETTERED, row).label == 1
    assert read(LETTERED, {"input": text, "label": "B"}) == read(LETTERED, row)


@pytest.mark.parametrize(
    ("value", "names", "expected"),
    [
        (1, None, 1),
        ("1", None, 1),
        ("C", None, 2),
        ("bo bu", None, 1),
        (None, None, None),
        (-100, None, None),
        ("", None, None),
        ("2", ["1", "2", "3"], 1),
        (3, ["1", "2", "3"], 2),
    ],
)
def test_the_right_choice_is_a_number_a_letter_or_its_text(value: Any, names: Any, expected: int | None) -> None:
    assert read({**COLUMNS, "data_labels": names}, {**ROW, "label": value}).label == expected


@pytest.mark.parametrize("value", [3, "D", "none of these", -1, "0.5"])
def test_another_one_is_refused(value: Any) -> None:
    with pytest.raises(
        DataError, match=r"a\.jsonl: row 7: label .* is unknown; use one of \['A', 'B', 'C'\] or its id"
    ):
        read(COLUMNS, {**ROW, "label": value})


def opened(path: Path, settings: dict[str, Any], **more: Any) -> LabelledData:
    data = Data(train=[Source(path=str(path))], heldout_fraction=0.3, **more)
    tokenizer: Any = write_tokenizer(path.parent / "tokenizer", encoder=True)
    kind: Any = kind_of(MultipleChoice(**settings, max_length=12))
    return LabelledData(data, kind, tokenizer, list_data(data), max_heldout=100)


@pytest.mark.parametrize(
    ("settings", "row", "fault"),
    [
        (COLUMNS, {**ROW, "ending1": None}, "choice B has nothing in it; give each choice a text"),
        (COLUMNS, {**ROW, "text": " "}, "column 'text' holds ' '; there is nothing in it to predict from"),
        (COLUMNS, {**ROW, "text": None}, "no value in column 'text'; every row needs one"),
        (LIST, {"text": "ba", "options": ["bi", "bo"], "label": 0}, "it has 2 choices, where each needs 3"),
        (LIST, {"text": "ba", "options": None, "label": 0}, "it has 0 choices, where each needs 3"),
        (LETTERED, {"input": "ba? A: bi B: bo", "label": "A"}, "it has 0 choices, where each needs 3"),
        (LETTERED, {"input": None, "label": "A"}, "it has 0 choices, where each needs 3"),
    ],
)
def test_a_question_without_all_its_choices_is_a_bad_record(
    tmp_path: Path, settings: dict[str, Any], row: dict[str, Any], fault: str
) -> None:
    good = {
        COLUMNS["choice_columns"][0]: lambda n: {**ROW, "text": f"ba {n}"},
        "options": lambda n: {"text": f"ba {n}", "options": ["bi", "bo", "ca"], "label": 0},
        "input": lambda n: {"input": f"ba {n}? A: bi B: bo C: ca", "label": "A"},
    }
    make = next(one for key, one in good.items() if key in row)
    path = write_rows(tmp_path / "a.jsonl", [*map(make, range(20)), row])
    data = opened(path, settings, bad_records={"max_fraction": 0.1})
    assert [bad.fault for bad in data.bad_records] == [fault]
    assert len(data.train) + len(data.heldout) == 20
    found = first_rows(Source(path=str(path)), kind_of(MultipleChoice(**settings)))
    assert [bad.fault for bad in found.bad_records] == [fault]
    assert found.problems == ()


def test_each_choice_is_read_beside_the_text_by_the_tokenizers_own_pair_encoding(tmp_path: Path) -> None:
    data = opened(write_rows(tmp_path / "a.jsonl", [{**ROW, "text": f"ba {'be ' * n}"} for n in range(20)]), COLUMNS)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", encoder=True)
    by_text = {}
    for number in range(20):
        for choice in ("bi", "bo bu", "ca"):
            whole = tokenizer(f"ba {'be ' * number}", choice, truncation=True, max_length=12)
            by_text.setdefault(number, []).append((whole["input_ids"], whole["token_type_ids"]))
    for sample in (*data.train, *data.heldout):
        sequences = [(one.input_ids, one.token_types) for one in sample.sequences]
        assert sequences in by_text.values()
        assert len(sample.input_ids) == max(len(ids) for ids, _ in sequences)
    assert data.has_token_types
    assert "between the two of a pair '[SEP]' (4)" in data.text_ends


def test_hashes_know_every_choice(tmp_path: Path) -> None:
    hashes = set()
    for choice in ("ca", "ci"):
        rows = [{**ROW, "text": f"ba {number}", "ending2": choice} for number in range(9)]
        hashes.add(samples_sha256(opened(write_rows(tmp_path / "a.jsonl", rows), COLUMNS).train))
    assert len(hashes) == 2


# --- batches ----------------------------------------------------------------------------------------------------------


def some_batch(tmp_path: Path) -> tuple[Any, Any, Any]:
    tokenizer = write_tokenizer(tmp_path / "own", encoder=True)
    kind: Any = kind_of(MultipleChoice(**COLUMNS))
    rows = [ROW, {**ROW, "text": "zo", "label": None}]
    samples = samples_of(kind, tokenizer, [one for row in rows for one in kind.read(row, where="", declared={})])
    collate = Collator(0, "class", with_token_types=True, rows_per_sample=3)
    return kind, tokenizer, collate([*samples, None])


def test_all_choices_are_rows_of_a_batch(tmp_path: Path) -> None:
    kind, tokenizer, batch = some_batch(tmp_path)
    assert batch.labels.tolist() == [1, -100, -100]
    assert batch.input_ids.shape[0] == batch.kept_tokens.shape[0] == len(batch.samples) == 9
    lengths = [6, 7, 6, 5, 6, 5, 0, 0, 0]
    assert batch.kept_tokens.sum(1).tolist() == lengths
    assert batch.attention_mask.sum(1).tolist() == [*lengths[:6], 1, 1, 1]
    assert kind.terms.predicted(batch.labels, batch.kept_tokens).tolist() == [True, True, False]
    shown = first_batch(batch, tokenizer, kind)
    assert shown[1] == "  [CLS] ba be [SEP] bi [SEP][pad x1]  -> A, wrong"
    assert shown[2] == "  [CLS] ba be [SEP] bo bu [SEP]  -> B, right"
    assert kind.show_row(batch, 3, tokenizer).endswith("-> A, ignored")


def test_the_beginning_of_a_question_keeps_its_choices(tmp_path: Path) -> None:
    data = opened(write_rows(tmp_path / "a.jsonl", [{**ROW, "text": f"ba {'be ' * n}"} for n in range(20)]), COLUMNS)
    for sample in mixed_lengths(data.heldout):
        assert len(sample.choices) == 3
        assert all(len(one.token_types or ()) == len(one.input_ids) for one in sample.choices)
        assert max(len(one.input_ids) for one in sample.choices) == len(sample.input_ids)


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_a_model_chooses_as_transformers_lets_it(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", family, labels=["fits"], architecture="MultipleChoice")
    _, _, batch = some_batch(tmp_path)
    head = kind_of(MultipleChoice(**COLUMNS)).head_config
    model, fresh = load_model(folder, LoadSettings(torch.float32), head=head, architecture="MultipleChoice")
    assert fresh == []
    choose_among_rows(model, 3)
    tapped = TappedModel(model.eval(), family_of(family), (0, 4))
    plain = AutoModelForMultipleChoice.from_pretrained(folder).eval()
    taken = {name: value for name, value in batch.inputs.items() if name != "token_type_ids" or family == "bert"}
    with torch.no_grad():
        logits, states = tapped(batch.inputs)
        expected = plain(**{name: value.unflatten(0, (3, 3)) for name, value in taken.items()}).logits
        torch.testing.assert_close(logits, expected)
        assert {state.shape[0] for state in states} == {9}
        bank = FilterBank((0, 4), 16, 8)
        probes = choice_probes(bank, dim=8, num_choices=3, pooling="first")
        found: Any = probes.predict(1, states[1], batch.inputs)
        head_of_layer: Any = probes.heads[1]
        feature = bank.filters[1](states[1])[:, 0]
        alone = head_of_layer.classifier(torch.nn.functional.gelu(head_of_layer.dense(feature)))
        torch.testing.assert_close(found.logits, alone.view(3, 3))


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give the columns of the choices as choice_columns, or that of lists of them as list_column"),
        ({**COLUMNS, "list_column": "x"}, "give the columns of the choices as choice_columns, or that of lists"),
        ({"list_column": "x"}, "num_choices is required where choices have no columns of their own; say how many"),
        ({**COLUMNS, "num_choices": 4}, "num_choices is 4, choice_columns has 3; leave num_choices out"),
        ({**COLUMNS, "data_labels": ["1", "2"]}, "data_labels has 2 names for 3 choices; give one for each"),
        ({**COLUMNS, "data_labels": ["1", "1", "2"]}, r"data_labels must be distinct, got \['1', '1', '2'\]"),
        ({"rows": "lettered", **COLUMNS}, "rows: lettered has all of a question in text_column; remove choice_columns"),
        ({"rows": "lettered"}, "num_choices is required where choices have no columns of their own"),
        ({**COLUMNS, "headline": "f1"}, "headline: 'f1': use accuracy or loss"),
    ],
)
def test_choices_are_named_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MultipleChoice(**{"kind": "multiple_choice", **settings})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill.micro_batch_size=null", "distill.micro_batch_tokens=99"],
            "has 2 texts for each example; use",
        ),
        (["teacher.cache={max_gib: 1}"], "teacher.cache: a cache keeps one text for each example"),
    ],
)
def test_what_goes_by_one_text_for_each_example_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    recipe = write_run(tmp_path, kind="multiple_choice")
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, overrides)


def test_a_decoder_has_no_such_head(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="multiple_choice")
    write_model(tmp_path / "decoder", "gpt2")
    with pytest.raises(ConfigError, match="transformers has no multiple_choice head for a gpt2; use one of bert"):
        plan_recipe(str(recipe), [f"teacher.path={tmp_path / 'decoder'}", f"teacher.finetune={json.dumps(TRAINING)}"])


TRAINING = {"max_steps": 1, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 2}


def test_check_counts_a_sequence_for_each_choice(tmp_path: Path) -> None:
    recipe, plan = plan_recipe(str(write_run(tmp_path, kind="multiple_choice")), [])
    shown = describe(recipe, plan, num_ranks=1)
    assert "2 steps x 4 questions of 2 sequences = 1 rank x 2 microbatches x 2; at most 256 tokens" in shown
    assert "text (text), one (text), two (text), label (integer)" in shown
    assert "labels " in shown
    assert write_labelled(tmp_path / "again.jsonl", kind="multiple_choice").is_file()
