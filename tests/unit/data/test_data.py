"""From files to microbatches: nothing is lost, nothing leaks, and a wrong row is named."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, processors
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from ted_ds.config.data import Data, Source
from ted_ds.config.tasks import CausalLm, SequenceClassification
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.loader import Batch, Collator, evaluation_batches
from ted_ds.data.packing import pack
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Label, Sample
from ted_ds.errors import ConfigError, DataError
from ted_ds.models.document_mask import DOCUMENTS
from ted_ds.numerics.losses import IGNORED_LABEL, kept_labels
from ted_ds.tasks.kind import kind_of
from tests.streams import open_stream
from tests.tiny import LABELS, WORDS, texts, write_labelled, write_rows, write_tokenizer

EOS = 1
TASK = SequenceClassification(kind="sequence_classification", labels=[*LABELS], max_length=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoder_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("encoder_tokenizer"), encoder=True)


def opened(kind: Any, data: Data, *arguments: Any, max_heldout: int) -> Any:
    return kind(data, *arguments, list_data(data), max_heldout=max_heldout)


# --- the held-out split -----------------------------------------------------------------------------------------------


def split_of(
    path: Path, tokenizer: PreTrainedTokenizerFast, **data: Any
) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """Token ids of one epoch of training rows, and of the held-out rows."""
    source = Data(train=[Source(path=str(path))], **data)
    one = opened(LabelledData, source, kind_of(TASK), tokenizer, max_heldout=1000)
    return Counter(tuple(s.input_ids) for s in one.train), Counter(tuple(s.input_ids) for s in one.heldout)


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_labelled(tmp_path / "a.jsonl", 80)
    lines = path.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    other = tmp_path / "b.jsonl"
    other.write_text("\n".join(lines), encoding="utf-8")
    assert split_of(path, tokenizer, heldout_fraction=0.3) == split_of(other, tokenizer, heldout_fraction=0.3)


def test_duplicates_of_a_text_are_on_one_side(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": f"{first} {second}", "label": 0} for first, second in itertools.product(WORDS[:7], WORDS[:7])]
    train, heldout = split_of(write_rows(tmp_path / "a.jsonl", rows * 3), tokenizer, heldout_fraction=0.3)
    assert set(train.values()) == set(heldout.values()) == {3}
    assert not train.keys() & heldout.keys()
    assert len(train) + len(heldout) == 49


def test_evaluation_data_of_its_own_leaves_all_training_rows_for_training(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    train = write_labelled(tmp_path / "train.jsonl", 20)
    evaluation = write_labelled(tmp_path / "evaluation.jsonl", 12, seed=1)
    data = Data(train=[Source(path=str(train))], evaluation=[Source(path=str(evaluation))])
    one = opened(LabelledData, data, kind_of(TASK), tokenizer, max_heldout=1000)
    assert len(one.heldout) == 12
    assert Counter(tuple(s.input_ids) for s in one.train) == Counter(
        tuple(tokenizer(text)["input_ids"][:8]) for text in texts(20)
    )


# --- classification ---------------------------------------------------------------------------------------------------


def test_labels_may_be_names_or_ids(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    names = write_labelled(tmp_path / "names.jsonl")
    rows = [json.loads(line) for line in names.read_text(encoding="utf-8").splitlines()]
    ids = write_rows(tmp_path / "ids.jsonl", [{**row, "label": LABELS.index(row["label"])} for row in rows])
    samples = [
        opened(
            LabelledData,
            Data(train=[Source(path=str(path))], heldout_fraction=0.3),
            kind_of(TASK),
            tokenizer,
            max_heldout=99,
        )
        for path in (names, ids)
    ]
    assert samples[0].heldout == samples[1].heldout
    assert {sample.label for sample in samples[0].heldout} == {0, 1}


@pytest.mark.parametrize(("known", "unknown"), [("negative", "neutral"), (0, 2), (0, -1)])
def test_an_unknown_label_is_refused_with_its_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, known: str | int, unknown: str | int
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "ba", "label": label} for label in (known, unknown)])
    with pytest.raises(DataError, match=rf"a\.jsonl: row 2: label {unknown!r} is unknown; use one of \['negative'"):
        opened(LabelledData, Data(train=[Source(path=str(path))]), kind_of(TASK), tokenizer, max_heldout=10)


def test_long_texts_are_cut_with_their_special_tokens_kept(
    tmp_path: Path, encoder_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_labelled(tmp_path / "a.jsonl", 60)
    data = Data(train=[Source(path=str(path))], heldout_fraction=0.5)
    one = kind_of(TASK).open_data(data, encoder_tokenizer, list_data(data), max_heldout=99)
    lengths = [len(sample.input_ids) for sample in one.heldout]
    assert max(lengths) == 8
    assert min(lengths) < 8
    for sample in one.heldout:
        assert sample.input_ids[0] == encoder_tokenizer.cls_token_id
        assert sample.input_ids[-1] == encoder_tokenizer.sep_token_id


def test_at_most_max_heldout_rows_are_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = Data(train=[Source(path=str(write_labelled(tmp_path / "a.jsonl")))], heldout_fraction=0.5)
    assert len(opened(LabelledData, data, kind_of(TASK), tokenizer, max_heldout=3).heldout) == 3


@pytest.mark.parametrize(
    ("fraction", "phrase"),
    [(1e-9, "no held-out rows to evaluate on; raise data.heldout_fraction"), (1 - 1e-9, "no training rows")],
)
def test_an_empty_split_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, fraction: float, phrase: str
) -> None:
    data = Data(train=[Source(path=str(write_labelled(tmp_path / "a.jsonl", 10)))], heldout_fraction=fraction)
    with pytest.raises(DataError, match=phrase):
        opened(LabelledData, data, kind_of(TASK), tokenizer, max_heldout=10)


# --- causal LM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 7, 50])
def test_packing_loses_no_token_but_a_lone_last_one(length: int) -> None:
    generator = random.Random(length)
    for total in range(1, 30):
        documents_ = [[generator.randrange(2, 100) for _ in range(generator.randrange(0, 6))] for _ in range(total)]
        joined = [token for document in documents_ for token in [*document, EOS]]
        packed = [ids for ids, _ in pack(documents_, length=length, separator=EOS)]
        assert all(len(sequence) == length for sequence in packed[:-1])
        assert all(1 < len(sequence) <= length for sequence in packed)
        lone = len(joined) % length == 1
        assert [token for sequence in packed for token in sequence] == (joined[:-1] if lone else joined)


@pytest.mark.parametrize("length", [2, 3, 7, 50])
def test_the_pieces_of_a_packed_sequence_are_those_of_its_documents(length: int) -> None:
    generator = random.Random(length)
    for total in range(1, 30):
        documents_ = [[generator.randrange(2, 100) for _ in range(generator.randrange(0, 6))] for _ in range(total)]
        ends = set(itertools.accumulate(len(document) + 1 for document in documents_))
        place = 0
        for ids, lengths in pack(documents_, length=length, separator=EOS):
            assert sum(lengths) == len(ids)
            assert all(one > 0 for one in lengths)
            starts = list(itertools.accumulate(lengths, initial=place))
            # a piece ends where its document ends, or where the sequence does
            assert set(starts[1:]) == {end for end in ends if place < end <= place + len(ids)} | {place + len(ids)}
            place += len(ids)


def test_packing_reads_no_further_than_it_must() -> None:
    endless = iter([index] for index in itertools.count())
    assert list(itertools.islice(pack(endless, length=4, separator=EOS), 2)) == [
        ([0, 1, 1, 1], [2, 2]),
        ([2, 1, 3, 1], [2, 2]),
    ]
    assert next(endless) == [4]


def test_a_document_longer_than_the_sequence_is_cut_into_pieces() -> None:
    assert list(pack([[2, 3, 4, 5, 6], [7], []], length=4, separator=EOS)) == [
        ([2, 3, 4, 5], [4]),
        ([6, EOS, 7, EOS], [2, 2]),
    ]
    assert list(pack([[2, 3, 4, 5, 6], [7], [], []], length=4, separator=EOS))[2:] == [([EOS, EOS], [1, 1])]


def lm_data(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerFast,
    *,
    length: int = 2,
    max_heldout: int = 1000,
    bos: Any = "auto",
    **data: Any,
) -> CorpusData:
    sources = Data(train=[Source(path=str(path)) for path in paths], **data)
    task = CausalLm(kind="causal_lm", sequence_length=length, bos=bos)
    return opened(CorpusData, sources, task, tokenizer, max_heldout=max_heldout)


def test_training_and_heldout_documents_are_apart_and_together_all(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": word} for word in WORDS])
    one = lm_data([path], tokenizer, heldout_fraction=0.3)
    heldout = {sample.input_ids[0] for sample in one.heldout}
    stream = open_stream(one)
    epoch = itertools.islice(stream, len(WORDS) - len(heldout))
    train = {int(batches[0].input_ids[0, 0]) for batches in epoch}
    assert all(sample.input_ids[1] == EOS and sample.label is None for sample in one.heldout)
    assert not train & heldout
    assert train | heldout == {tokenizer.get_vocab()[word] for word in WORDS}


def test_heldout_sequences_come_from_every_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    large = write_rows(tmp_path / "large.jsonl", [{"text": f"ba {word}"} for word in WORDS])
    small = write_rows(tmp_path / "small.jsonl", [{"text": f"zu {word}"} for word in WORDS[:30]])
    one = lm_data([large, small], tokenizer, length=3, max_heldout=6, heldout_fraction=0.5)
    firsts = Counter(tokenizer.convert_ids_to_tokens(sample.input_ids)[0] for sample in one.heldout)
    assert firsts == {"ba": 3, "zu": 3}


@pytest.mark.parametrize(
    ("template", "bos", "start", "words"),
    [
        (None, "auto", [], "before each text nothing (as the tokenizer's own encode does), behind it '[EOS]' (1)"),
        (None, "always", [3], "before each text '[CLS]' (3) (task.bos: always), behind it '[EOS]' (1)"),
        (
            "[CLS] $A",
            "auto",
            [3],
            "before each text '[CLS]' (3) (as the tokenizer's own encode does), behind it '[EOS]'",
        ),
        ("[CLS] $A [SEP]", "auto", [3], "before each text '[CLS]' (3) (as the"),
        ("[CLS] $A [SEP]", "never", [], "before each text nothing (task.bos: never), behind it '[EOS]' (1)"),
        ("[SEP] [CLS] $A", "auto", [4, 3], "before each text '[SEP]' (4) '[CLS]' (3) (as the"),
    ],
)
def test_training_and_heldout_documents_start_as_the_setting_says(
    tmp_path: Path, template: str | None, bos: str, start: list[int], words: str
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    tokenizer.bos_token = "[CLS]"
    if template is not None:
        ends = [(token, tokenizer.get_vocab()[token]) for token in ("[CLS]", "[SEP]") if token in template]
        step = processors.TemplateProcessing(single=template, special_tokens=ends)
        tokenizer.backend_tokenizer.post_processor = step  # type: ignore[assignment]
    path = write_rows(tmp_path / "a.jsonl", [{"text": word} for word in WORDS])
    length = len(start) + 2
    one = lm_data([path], tokenizer, length=length, heldout_fraction=0.3, bos=bos)
    assert one.text_ends.startswith(words)
    assert one.start == tuple(start)
    stream = open_stream(one)
    count = len(WORDS) - len(one.heldout)
    rows = [next(stream)[0].input_ids[0].tolist() for _ in range(count)] + [one.input_ids for one in one.heldout]
    assert all(row[:-2] == start and row[-1] == EOS and len(row) == length for row in rows)
    assert {row[-2] for row in rows} == {tokenizer.get_vocab()[word] for word in WORDS}


def test_documents_of_a_tokenizer_without_bos_cannot_always_start_with_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": word} for word in WORDS])
    with pytest.raises(ConfigError, match=r"task\.bos: always, but the teacher's tokenizer has no BOS token"):
        lm_data([path], tokenizer, bos="always")


def test_texts_of_which_the_tokenizer_leaves_nothing_are_refused(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    tokenizer.backend_tokenizer.normalizer = Replace(Regex("[^a-z ]"), "")  # type: ignore[assignment]
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"日本 {number}"} for number in range(30)])
    phrase = (
        r"a\.jsonl: the tokenizer gives no tokens for the first 16 documents, such as '日本 0'; use data in the model"
    )
    with pytest.raises(DataError, match=phrase):
        lm_data([path], tokenizer, heldout_fraction=0.3)
    some = write_rows(tmp_path / "some.jsonl", [{"text": f"日本 {word}"} for word in WORDS])
    assert lm_data([some], tokenizer, heldout_fraction=0.3).heldout


def test_rows_of_labelled_tasks_are_read_with_the_tokenizers_own_ends(
    tmp_path: Path, encoder_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = Data(train=[Source(path=str(write_labelled(tmp_path / "a.jsonl")))], heldout_fraction=0.5)
    with_ends = opened(LabelledData, data, kind_of(TASK), encoder_tokenizer, max_heldout=3)
    why = "(as the tokenizer's own encode does), behind it"
    assert with_ends.text_ends == f"before each text '[CLS]' (3) {why} '[SEP]' (4)"
    assert all(sample.input_ids[0] == 3 and sample.input_ids[-1] == 4 for sample in with_ends.train)
    assert (
        opened(LabelledData, data, kind_of(TASK), tokenizer, max_heldout=3).text_ends
        == f"before each text nothing {why} nothing"
    )


# --- batches ----------------------------------------------------------------------------------------------------------


def sample_of(*ids: int, label: Label | None = None) -> Sample:
    return Sample([*ids], label)


def packed_sample(*documents_: list[int]) -> Sample:
    return Sample([token for one in documents_ for token in one], document_lengths=[len(one) for one in documents_])


def test_labels_are_the_next_tokens_and_padding_is_ignored() -> None:
    batch = Collator(pad_id=0, labels="tokens")([sample_of(5, 6, 7), sample_of(8, 9)])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[6, 7, IGNORED_LABEL], [9, IGNORED_LABEL, IGNORED_LABEL]]
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}


def test_an_end_token_that_also_pads_counts_where_it_is_real() -> None:
    batch = Collator(pad_id=EOS, labels="tokens")([sample_of(5, EOS, 6), sample_of(7, EOS)])
    assert batch.input_ids.tolist() == [[5, EOS, 6], [7, EOS, EOS]]
    assert batch.labels.tolist() == [[EOS, 6, IGNORED_LABEL], [EOS, IGNORED_LABEL, IGNORED_LABEL]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_class_labels_are_one_per_row_and_an_empty_row_counts_nowhere() -> None:
    batch = Collator(pad_id=0, labels="class")([sample_of(5, 6, label=1), None, sample_of(7, label=0)])
    assert batch.labels.tolist() == [1, IGNORED_LABEL, 0]
    assert batch.attention_mask.tolist() == [[1, 1], [1, 0], [1, 0]]
    assert Collator(pad_id=0, labels="tokens")([None]).labels.tolist() == [[IGNORED_LABEL]]


def test_numbers_are_one_list_per_row_and_an_empty_row_has_none() -> None:
    collate = Collator(pad_id=0, labels="numbers", num_outputs=2)
    batch = collate([sample_of(5, 6, label=[1.5, -100.0]), None])
    assert batch.labels.dtype == torch.float32
    assert batch.labels[0].tolist() == [1.5, -100.0]
    assert batch.labels[1].isnan().tolist() == [True, True]
    assert kept_labels(batch.labels).tolist() == [[True, True], [False, False]]
    assert collate([None, None]).labels.isnan().all()


EMPTY_ROW_COLLATORS = [
    Collator(pad_id=0, labels=labels, side=side, multiple_of=multiple_of, isolate_documents=isolate)
    for labels, isolate in (("tokens", False), ("tokens", True), ("class", False), ("numbers", False))
    for side in ("right", "left")
    for multiple_of in (1, 4)
]


@pytest.mark.parametrize(
    "collate", EMPTY_ROW_COLLATORS, ids=lambda c: f"{c.labels}-{c.side}-{c.multiple_of}-{c.isolate_documents}"
)
def test_of_an_empty_row_nothing_is_kept_though_one_token_is_attended_to(collate: Collator) -> None:
    label: Any = {"tokens": None, "class": 1, "numbers": [1.0]}[collate.labels]
    real = Sample([5, 6, 7, 8, 9], label, document_lengths=[3, 2])
    for samples in ([None], [real, None, real], [None, None, real]):
        batch = collate(samples)
        empty = torch.tensor([sample is None for sample in samples])
        assert not batch.kept_tokens[empty].any()
        assert batch.attention_mask[empty].sum(1).tolist() == [1] * int(empty.sum())
        assert not kept_labels(batch.labels)[empty].any()
        assert batch.kept_tokens[~empty].sum(1).tolist() == [5] * int((~empty).sum())
        assert torch.equal(batch.attention_mask[~empty].bool(), batch.kept_tokens[~empty])


def test_padding_goes_to_the_left_and_positions_count_from_the_first_token() -> None:
    batch = Collator(pad_id=0, labels="tokens", side="left")([sample_of(5, 6, 7), sample_of(8, 9), None])
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 8, 9], [0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert batch.kept_tokens.tolist() == [[True, True, True], [False, True, True], [False, False, False]]
    assert batch.labels.tolist() == [[6, 7, IGNORED_LABEL], [IGNORED_LABEL, 9, IGNORED_LABEL], [IGNORED_LABEL] * 3]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert batch.inputs.keys() == {"input_ids", "attention_mask", "position_ids"}


@pytest.mark.parametrize(("longest", "multiple_of", "width"), [(3, 1, 3), (3, 4, 4), (4, 4, 4), (5, 4, 8), (1, 8, 8)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_to_a_multiple(longest: int, multiple_of: int, width: int, side: Any) -> None:
    collate = Collator(pad_id=0, labels="class", side=side, multiple_of=multiple_of)
    batch = collate([sample_of(*[7] * longest, label=0), sample_of(8, label=1)])
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.kept_tokens.shape == (2, width)
    assert batch.kept_tokens.sum(1).tolist() == [longest, 1]
    padding = [0] * (width - longest)
    assert batch.input_ids[0].tolist() == ([*padding, *[7] * longest] if side == "left" else [*[7] * longest, *padding])


def test_isolated_documents_count_positions_anew_and_none_predicts_the_next_ones_first_token() -> None:
    collate = Collator(pad_id=0, labels="tokens", isolate_documents=True)
    batch = collate([packed_sample([5, 6, EOS], [EOS], [7, 8, 9]), packed_sample([2, EOS], [3, 4])])
    none = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[5, 6, EOS, EOS, 7, 8, 9], [2, EOS, 3, 4, 0, 0, 0]]
    assert batch.labels.tolist() == [[6, EOS, none, none, 8, 9, none], [EOS, none, 4, none, none, none, none]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2], [0, 1, 0, 1, 0, 0, 0]]
    assert batch.isolated
    assert batch.inputs.keys() == {"input_ids", "position_ids", DOCUMENTS}, "with a mask, nobody would look for them"
    assert batch.attention_mask.tolist() == batch.kept_tokens.int().tolist() == [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]


def test_documents_that_are_not_isolated_are_one_text() -> None:
    batch = Collator(pad_id=0, labels="tokens")([packed_sample([5, 6, EOS], [EOS], [7, 8])])
    assert batch.labels.tolist() == [[6, EOS, EOS, 7, 8, IGNORED_LABEL]]
    assert batch.position_ids is None
    assert not batch.isolated
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_moves_as_a_whole(isolate: bool) -> None:
    batch = Collator(pad_id=0, labels="tokens", isolate_documents=isolate)([packed_sample([5, 6], [7])])
    moved = batch.to(torch.device("meta"))
    tensors = {name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert tensors >= {"input_ids", "attention_mask", "labels", "kept_tokens"}
    assert ("position_ids" in tensors) == isolate
    assert {getattr(moved, name).device.type for name in tensors} == {"meta"}
    assert moved.isolated == isolate
    assert moved.inputs.keys() == batch.inputs.keys()


def rows_in(batches: Sequence[Batch]) -> list[tuple[int, ...]]:
    """Unpadded token ids of all rows."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def numbered_samples(count: int | None = None) -> Iterator[Sample]:
    numbers = itertools.count(1) if count is None else range(1, count + 1)
    return (sample_of(*[number] * (1 + number % 3), label=number % 2) for number in numbers)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 13, 20])
def test_evaluation_covers_each_sample_once_in_as_many_batches_on_each_rank(
    world_size: int, micro_batch_size: int, count: int
) -> None:
    samples = list(numbered_samples(count))
    of_rank = [
        list(
            evaluation_batches(
                samples,
                Collator(pad_id=0, labels="class"),
                micro_batch_size=micro_batch_size,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in of_rank} == {-(-count // (micro_batch_size * world_size))}
    assert {len(batch.labels) for batches in of_rank for batch in batches} == {micro_batch_size}
    covered = [
        (row, label)
        for batches in of_rank
        for batch in batches
        for row, label in zip(rows_in([batch]), batch.labels.tolist(), strict=True)
        if label != IGNORED_LABEL
    ]
    assert sorted(covered) == sorted((tuple(sample.input_ids), sample.label) for sample in samples)
