"""A text that each model reads by a tokenizer of its own: both readings in one sample, and in one batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ted_ds.assembly.readers import Readers
from ted_ds.config.data import Data, Padding
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import LabelledStream, samples_sha256
from ted_ds.data.reading.listing import list_data
from ted_ds.data.step_division import StepDivision
from ted_ds.errors import DataError
from ted_ds.tasks.kind import kind_of
from ted_ds.tasks.two_tokenizers import open_for_both
from tests.task_kinds import OF_NAME, SECTIONS
from tests.tiny import task_dict, texts, write_labelled, write_letters, write_rows, write_tokenizer

KIND = "sequence_classification"
LONGEST = 12
BOTH = ("student", "teacher")
TASK = SECTIONS[KIND](**{**task_dict(KIND), "max_length": LONGEST})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("tokenizers")
    teacher = write_tokenizer(folder / "teacher", encoder=True)
    (folder / "student").mkdir()
    return {"student": write_letters(folder / "student", encoder=True), "teacher": teacher}


def opened(folder: Path, tokenizers: Any, *, rows: list[dict[str, Any]] | None = None, **settings: Any) -> LabelledData:
    path = write_rows(folder / "a.jsonl", rows) if rows else write_labelled(folder / "a.jsonl", 30)
    data = Data(
        train=[{"path": str(path)}],  # type: ignore[list-item]
        **{"heldout_fraction": 0.2, **settings},
    )
    return open_for_both(kind_of(TASK), data, tokenizers, list_data(data), max_heldout=99)


def words_of(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    """The letters of a text, whatever its tokens are."""
    return str(tokenizer.decode([*ids], skip_special_tokens=True)).replace(" ", "")


def test_both_readings_of_a_sample_are_of_one_text_and_each_is_cut_by_itself(tmp_path: Path, tokenizers: Any) -> None:
    data = opened(tmp_path, tokenizers)
    assert data.is_read_twice
    lengths: dict[str, set[int]] = {"student": set(), "teacher": set()}
    for sample in [*data.train, *data.heldout]:
        assert sample.of_teacher is not None
        assert sample.of_teacher.label == sample.label
        assert sample.of_teacher.of_teacher is None
        mine, theirs = (
            words_of(tokenizers[side], one.input_ids)
            for side, one in (("student", sample), ("teacher", sample.of_teacher))
        )
        assert theirs.startswith(mine)  # letters are cut sooner
        assert sample.length == max(len(sample.input_ids), len(sample.of_teacher.input_ids)) <= LONGEST
        lengths["student"].add(len(sample.input_ids))
        lengths["teacher"].add(len(sample.of_teacher.input_ids))
    assert max(lengths["student"]) == LONGEST
    assert len(lengths["teacher"]) > 4
    assert "to the student before each text '<s>' (2)" in data.text_ends
    assert "; to the teacher before each text '[CLS]' (3)" in data.text_ends


def test_a_model_alone_reads_what_it_would_read_beside_nobody(tmp_path: Path, tokenizers: Any) -> None:
    readers = Readers(kind_of(TASK), Padding(multiple_of=4), opened(tmp_path, tokenizers), tokenizers)
    rows: Any = kind_of(TASK)
    data = Data(train=[{"path": str(tmp_path / "a.jsonl")}], heldout_fraction=0.2)  # type: ignore[list-item]
    for side, pad_id in (("student", 0), ("teacher", 0)):
        plain = LabelledData(data, rows, tokenizers[side], list_data(data), max_heldout=99)
        reader = readers.of(side)
        assert reader.data.train == plain.train
        assert reader.data.heldout == plain.heldout
        assert reader.last_token_ids == plain.last_token_ids
        assert reader.collate == kind_of(TASK).collator(pad_id, Padding(multiple_of=4))
    assert readers.has("teacher")
    assert readers.of("teacher", "student") is readers.of("student", "teacher")


def test_a_batch_holds_both_readings_side_by_side(tmp_path: Path, tokenizers: Any) -> None:
    readers = Readers(kind_of(TASK), Padding(), opened(tmp_path, tokenizers), tokenizers)
    both = readers.of(*BOTH)
    first, second, *_ = sorted(both.data.train, key=lambda one: len(one.of_teacher.input_ids) if one.of_teacher else 0)
    samples: Any = [first, None, second]
    batch = both.collate(samples).to(torch.device("cpu"))
    assert batch.of_teacher is not None
    assert batch.read_by("student") is batch
    assert batch.read_by("teacher") is batch.of_teacher
    assert batch.labels.tolist() == batch.of_teacher.labels.tolist()
    assert batch.samples == batch.of_teacher.samples == (first.index, -1, second.index)
    assert batch.texts.tolist() == batch.of_teacher.texts.tolist() == [True, False, True]
    for side in BOTH:
        own = readers.of(side)
        alone = own.collate([one and own.data.train[one.index] for one in samples])
        assert alone.of_teacher is None
        rows = batch.read_by(side)
        assert rows.inputs.keys() == alone.inputs.keys()
        assert all(torch.equal(rows.inputs[name], alone.inputs[name]) for name in alone.inputs)
    assert batch.input_ids.shape != batch.of_teacher.input_ids.shape


def test_one_tokenizer_is_one_reader(tmp_path: Path, tokenizers: Any) -> None:
    rows: Any = kind_of(TASK)
    data = Data(train=[{"path": str(write_labelled(tmp_path / "a.jsonl", 30))}], heldout_fraction=0.2)  # type: ignore[list-item]
    plain = LabelledData(data, rows, tokenizers["student"], list_data(data), max_heldout=9)
    readers = Readers(rows, Padding(), plain, dict.fromkeys(BOTH, tokenizers["student"]))
    assert readers.of("student") is readers.of("teacher") is readers.of(*BOTH)
    assert readers.of("teacher").data is plain
    assert readers.of(*BOTH).collate.of_teacher is None
    assert not readers.are_two


def test_what_the_student_alone_has_read_is_nothing_to_the_teacher(tmp_path: Path, tokenizers: Any) -> None:
    kind: Any = OF_NAME["token_classification"]
    path = write_labelled(tmp_path / "a.jsonl", 30, kind="token_classification")
    data = Data(train=[{"path": str(path)}], heldout_fraction=0.2)  # type: ignore[list-item]
    readers = Readers(
        kind, Padding(), kind.open_data(data, tokenizers["student"], list_data(data), max_heldout=9), tokenizers
    )
    assert not readers.has("teacher")
    assert readers.of("student").data.train
    for sides in (("teacher",), BOTH):
        with pytest.raises(AssertionError, match="the teacher's tokenizer has read nothing"):
            readers.of(*sides)


def test_pairs_have_types_where_their_own_tokenizer_says_them(tmp_path: Path, tokenizers: Any) -> None:
    task = TASK.model_copy(update={"text_column": ["text", "second"]})
    rows = [{"text": one, "second": "ba be", "label": "positive"} for one in texts(20)]
    data = Data(train=[{"path": str(write_rows(tmp_path / "a.jsonl", rows))}], heldout_fraction=0.2)  # type: ignore[list-item]
    pairs = open_for_both(kind_of(task), data, tokenizers, list_data(data), max_heldout=9)
    both = Readers(kind_of(task), Padding(), pairs, tokenizers).of(*BOTH)
    batch = both.collate(both.data.train[:3])
    assert batch.token_type_ids is None
    assert batch.of_teacher is not None
    assert batch.of_teacher.token_type_ids is not None
    assert batch.of_teacher.token_type_ids.any()


@pytest.mark.parametrize("whose", BOTH)
def test_a_text_without_a_token_of_either_is_no_example_of_both(tmp_path: Path, tokenizers: Any, whose: str) -> None:
    rows = [{"text": text, "label": "positive"} for text in texts(20)]

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizers[whose], name)

        def __call__(self, given: list[str], **settings: Any) -> Any:
            encoded = tokenizers[whose](given, **settings)["input_ids"]
            return {
                "input_ids": [[] if text == rows[2]["text"] else ids for text, ids in zip(given, encoded, strict=True)]
            }

    kept = opened(tmp_path, tokenizers, rows=rows)
    data = opened(tmp_path, {**tokenizers, whose: Forgetful()}, rows=rows, bad_records={"max_fraction": 0.5})
    (bad,) = data.bad_records
    assert bad.position == "row 3"
    assert bad.fault.endswith("makes no token")
    assert ("of which the teacher's tokenizer makes" in bad.fault) == (whose == "teacher")
    assert len(data.train) + len(data.heldout) == len(kept.train) + len(kept.heldout) - 1


def test_texts_of_transfer_are_read_by_both(tmp_path: Path, tokenizers: Any) -> None:
    path = write_rows(tmp_path / "more.jsonl", [{"text": text} for text in texts(5, seed=7)])
    data = opened(tmp_path, tokenizers, transfer=[{"path": str(path)}])
    assert len(data.transfer) + data.num_transfer_heldout == 5
    assert data.transfer
    assert all(one.of_teacher is not None for one in data.transfer)
    of_teacher = data.read_by(["teacher"])
    assert [one.index for one in of_teacher.learned] == [one.index for one in data.learned]


# --- batches of a step ------------------------------------------------------------------------------------------------


def stream_of(reader: Any, *, state: Any = None, **division: Any) -> LabelledStream:
    sizes = {"global_batch_size": 8, "micro_batch_size": None, **division}
    return reader.data.stream(reader.collate, StepDivision(**sizes), seed=1, num_workers=0, timeout_s=9, state=state)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_microbatch_of_a_budget_keeps_to_it_in_the_tokens_of_either(
    tmp_path: Path, tokenizers: Any, world_size: int
) -> None:
    readers = Readers(kind_of(TASK), Padding(), opened(tmp_path, tokenizers), tokenizers)
    sizes: dict[str, list[int]] = {side: [] for side in BOTH}
    ranks = [
        stream_of(readers.of(*BOTH), micro_batch_tokens=2 * LONGEST, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batches in itertools.islice(itertools.chain.from_iterable(zip(*ranks, strict=True)), 6):
        for batch in batches:
            for side in BOTH:
                sizes[side].append(batch.read_by(side).input_ids.numel())
    assert max(map(max, sizes.values())) <= 2 * LONGEST
    assert max(sizes["student"]) == 2 * LONGEST


def test_a_stream_does_not_go_on_with_other_tokens_of_the_teacher(tmp_path: Path, tokenizers: Any) -> None:
    readers = Readers(kind_of(TASK), Padding(), opened(tmp_path, tokenizers), tokenizers)
    both, alone = readers.of(*BOTH), readers.of("student")
    assert samples_sha256(both.data.train) != samples_sha256(alone.data.train)
    stream = stream_of(both, micro_batch_size=2)
    next(stream)
    state = stream.state_dict()
    after = next(stream_of(both, micro_batch_size=2, state=state))
    expected = next(stream)
    for one, other in zip(after, expected, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.read_by("teacher").input_ids, other.read_by("teacher").input_ids)
    with pytest.raises(DataError, match="samples_sha256 was"):
        stream_of(alone, micro_batch_size=2, state=state)
