"""Held-out sets that are scored by themselves: read, kept out of training, and refused where nothing can be scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.data import Data
from ted_ds.config.load import load_recipe
from ted_ds.config.tasks import CausalLm, SequenceClassification
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import ConfigError, DataError
from ted_ds.tasks.kind import kind_of
from tests.task_kinds import plan_recipe
from tests.tiny import (
    LABELS,
    recipe_dict,
    write_corpus,
    write_labelled,
    write_recipe,
    write_rows,
    write_run,
    write_tokenizer,
)

ONE = SequenceClassification(kind="sequence_classification", labels=[*LABELS])
LM = CausalLm(kind="causal_lm", sequence_length=16)


def opened(task: Any, train: Path, apart: dict[str, list[Path]], **settings: Any) -> LabelledData | CorpusData:
    sources = {name: [{"path": str(path)} for path in paths] for name, paths in apart.items()}
    data = Data(train=[{"path": str(train)}], apart=sources, heldout_fraction=0.3, **settings)  # type: ignore[list-item]
    tokenizer: Any = write_tokenizer(train.parent / "tokenizer")
    return kind_of(task).open_data(data, tokenizer, list_data(data), max_heldout=10)


def test_sets_of_labelled_rows_are_read_whole_up_to_the_most_that_is_scored(tmp_path: Path) -> None:
    train = write_labelled(tmp_path / "train.jsonl")
    few, many = write_labelled(tmp_path / "few.jsonl", 4, seed=1), write_labelled(tmp_path / "many.jsonl", 30, seed=2)
    alone, data = opened(ONE, train, {}), opened(ONE, train, {"few": [few], "both": [few, many]})
    assert isinstance(alone, LabelledData)
    assert isinstance(data, LabelledData)
    assert {name: len(samples) for name, samples in data.beside.items()} == {"few": 4, "both": 10}
    assert data.beside["both"][:4] == data.beside["few"]
    assert (data.train, data.heldout) == (alone.train, alone.heldout)
    assert data.last_token_ids >= {sample.input_ids[-1] for sample in data.beside["both"]}


def test_sets_of_documents_take_as_many_sequences_from_each_source(tmp_path: Path) -> None:
    train = write_corpus(tmp_path / "train.jsonl")
    one, other = write_corpus(tmp_path / "one.jsonl", 200, seed=1), write_corpus(tmp_path / "other.jsonl", 200, seed=2)
    alone, data = opened(LM, train, {}), opened(LM, train, {"one": [one], "two": [one, other]})
    assert {name: len(samples) for name, samples in data.beside.items()} == {"one": 10, "two": 10}
    assert data.beside["two"][:5] == data.beside["one"][:5]
    assert data.beside["two"][5:] != data.beside["one"][5:]
    assert data.heldout == alone.heldout


@pytest.mark.parametrize("task", [ONE, LM])
def test_a_set_without_anything_to_score_is_refused(tmp_path: Path, task: Any) -> None:
    write = write_labelled if task is ONE else write_corpus
    train = write(tmp_path / "train.jsonl")
    blank = write_rows(tmp_path / "blank.jsonl", [{"text": " ", "label": 0}])
    message = r"blank\.jsonl: no rows to evaluate on; fill data\.apart\.other, or remove it$"
    with pytest.raises(DataError, match=message):
        opened(task, train, {"other": [blank]}, bad_records={"max_fraction": 1})


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    train = write_labelled(tmp_path / "train.jsonl")
    hidden = write_rows(tmp_path / "hidden.jsonl", [{"text": "ba be", "label": None}] * 3)
    message = r"hidden\.jsonl: no held-out row has a label to be scored by; give data\.apart\.hidden rows with labels$"
    with pytest.raises(DataError, match=message):
        opened(ONE, train, {"hidden": [hidden]})


def test_a_set_called_test_would_be_taken_for_another() -> None:
    with pytest.raises(ValueError, match=r"metrics called test/\.\.\. are those of data\.test; give it there"):
        Data(train=[{"path": "a"}], apart={"test": [{"path": "b"}]})  # type: ignore[list-item]


def test_sets_go_by_names_that_metrics_can_have_and_hold_something(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, kind="sequence_classification"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, ["data.apart={'a b': [{path: x}], none: [], 'c': [{path: y, splitt: z, format: jsn}]}"])
    for line in (
        "data: apart: 'a b': use letters, digits, '_', '.' and '-'; metrics are called by it",
        "data: apart.none: no source; give at least one",
        "data.apart.c[0].splitt: unknown key; did you mean 'split'?",
        "data.apart.c[0].format: 'jsn': use auto, json, csv, parquet, text, arrow or hub",
    ):
        assert f"{recipe}: {line}" in str(caught.value)


def test_check_looks_at_each_set(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, kind="sequence_classification")
    odd = write_rows(tmp_path / "odd.jsonl", [{"text": "ba", "label": "so-so"}])
    with pytest.raises(ConfigError, match=r"data\.apart\.odd\[0\]: .*odd\.jsonl: row 1: label 'so-so' is unknown"):
        plan_recipe(str(recipe), [f"data.apart={{odd: [{{path: {odd}}}]}}"])
    _, plan = plan_recipe(str(recipe), [f"data.apart={{same: [{{path: {tmp_path / 'train.jsonl'}}}]}}"])
    assert plan.data["data.apart.same[0]"].num_rows == 60
