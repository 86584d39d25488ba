"""Data to choose by and data to test on: told apart, and neither is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted_ds.config.data import Data, Source, by_older_name
from ted_ds.config.tasks import CausalLm, SequenceClassification
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import DataError
from ted_ds.phases.inputs import UNDECIDING_DATA_KEYS
from ted_ds.tasks.kind import kind_of
from tests.tiny import LABELS, texts, write_labelled, write_rows, write_tokenizer

ONE = SequenceClassification(kind="sequence_classification", labels=[*LABELS], max_length=16)
LM = CausalLm(kind="causal_lm", sequence_length=8)


def sources(*paths: Path) -> list[Source]:
    return [Source(path=str(path)) for path in paths]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Labelled files of different lengths."""
    return {
        name: write_labelled(tmp_path / f"{name}.jsonl", count, seed=seed)
        for seed, (name, count) in enumerate({"train": 30, "validation": 12, "test": 9}.items())
    }


def opened(task: Any, data: Data, folder: Path, *, max_heldout: int = 5) -> Any:
    return kind_of(task).open_data(
        data, write_tokenizer(folder / "tokenizer"), list_data(data), max_heldout=max_heldout
    )


@pytest.mark.parametrize("key", ["validation", "evaluation"])
@pytest.mark.parametrize("task", [ONE, LM], ids=["classification", "causal_lm"])
def test_test_data_are_whole_and_held_out_ones_as_many_as_are_scored(
    tmp_path: Path, files: dict[str, Path], task: Any, key: str
) -> None:
    held_out: dict[str, Any] = {key: sources(files["validation"])}
    data = Data(train=sources(files["train"]), test=sources(files["test"], files["validation"]), **held_out)
    found = opened(task, data, tmp_path)
    without = opened(task, Data(train=sources(files["train"]), **held_out), tmp_path)
    assert len(found.heldout) == 5
    assert (without.heldout, without.beside) == (found.heldout, {})
    if task is ONE:
        assert len(found.beside["test"]) == 9 + 12
        assert found.train == without.train
        assert len(found.train) == 30
    else:
        alone = opened(
            LM, Data(train=sources(files["train"]), validation=sources(files["test"])), tmp_path, max_heldout=99
        )
        assert found.beside["test"][: len(alone.heldout)] == alone.heldout


def test_with_test_data_alone_the_held_out_ones_are_split_off(tmp_path: Path, files: dict[str, Path]) -> None:
    data = Data(train=sources(files["train"]), test=sources(files["test"]), heldout_fraction=0.3)
    found = opened(ONE, data, tmp_path, max_heldout=99)
    assert len(found.train) + len(found.heldout) == 30
    assert len(found.heldout) > 3
    assert len(found.beside["test"]) == 9


@pytest.mark.parametrize("task", [ONE, LM], ids=["classification", "causal_lm"])
def test_test_data_without_a_row_are_refused(tmp_path: Path, files: dict[str, Path], task: Any) -> None:
    blank = write_rows(tmp_path / "blank.jsonl", [{"text": " ", "label": LABELS[0]}])
    data = Data(
        train=sources(files["train"]),
        validation=sources(files["validation"]),
        test=sources(blank),
        bad_records={"max_fraction": 1.0},
    )
    with pytest.raises(DataError) as caught:
        opened(task, data, tmp_path)
    assert str(caught.value) == f"{blank}: no rows to evaluate on; fill data.test, or remove it"


def test_test_data_without_a_label_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": text, "label": None} for text in texts(3)])
    data = Data(train=sources(files["train"]), validation=sources(files["validation"]), test=sources(path))
    with pytest.raises(DataError) as caught:
        opened(ONE, data, tmp_path)
    assert str(caught.value) == (
        f"{path}: no held-out row has a label to be scored by; give data.test rows with labels"
    )


def test_both_names_of_one_thing_are_refused() -> None:
    with pytest.raises(ValueError, match="evaluation is the older name of validation; give one of them"):
        Data(train=sources(Path("a")), validation=sources(Path("b")), evaluation=sources(Path("b")))


def test_no_phase_that_trains_depends_on_test_data_or_on_which_name_is_used(files: dict[str, Path]) -> None:
    train, held_out, test = (sources(path) for path in files.values())

    def inputs(**parts: Any) -> Any:
        data = Data(train=train, **parts)
        return by_older_name(data.model_dump(exclude=UNDECIDING_DATA_KEYS)), list_data(data).identity()

    assert inputs(validation=held_out) == inputs(evaluation=held_out) == inputs(evaluation=held_out, test=test)
    assert inputs(evaluation=held_out) != inputs()
    listing = list_data(Data(train=train, test=test))
    assert [*listing.test_identity()] == ["test[0]"]
    assert len([*listing.sources]) == 2


def test_scored_examples_of_a_sorted_file_that_all_have_one_label_are_doubted(tmp_path: Path) -> None:
    train, sorted_rows = write_labelled(tmp_path / "train.jsonl", 30), tmp_path / "sorted.jsonl"
    write_rows(sorted_rows, ({"text": f"film {row}", "label": LABELS[row >= 20]} for row in range(40)))
    data = Data(train=sources(train), validation=sources(sorted_rows))
    assert opened(ONE, data, tmp_path, max_heldout=40).doubt is None
    assert opened(ONE, data, tmp_path, max_heldout=9).doubt is None, "it may be an accident"
    assert opened(ONE, data, tmp_path, max_heldout=20).doubt == (
        "all 20 held-out examples that are scored have one label (0, from 0 on), those to learn from have 2: a model "
        "that always says it would be right. The first evaluation.max_examples are scored; raise it, or mix the rows "
        "of the file"
    )
    assert opened(LM, data, tmp_path, max_heldout=20).doubt is None
