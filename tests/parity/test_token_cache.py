"""What is kept of a language model's teacher comes back, is of the sequence that is read, and is asked for once."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from ted_ds.config.data import Data
from ted_ds.config.tasks import CausalLm
from ted_ds.data.corpus_data import CorpusData
from ted_ds.data.loader import Collator, OfCompletions, checksum
from ted_ds.data.reading.listing import list_data
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError
from ted_ds.numerics.keeping import Keeping, Kept, keep_top
from ted_ds.numerics.teacher_predictions import KeptPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.planning.cache_size import TokenSizes
from ted_ds.teacher_cache.cached_tokens import CachedTokens
from ted_ds.teacher_cache.parts import Part, PartWriter, written
from ted_ds.teacher_cache.questions import SetQuestions, StreamQuestions
from ted_ds.teacher_cache.store import Reader, Record, finish
from ted_ds.teacher_cache.token_record import Answer, TokenRecord
from tests.device import DEVICE
from tests.streams import open_stream
from tests.tiny import write_corpus, write_tokenizer
from tests.waits import waits_of

DIM = 5


def answer_of(record: TokenRecord, predicted: int, matched: int, *, seed: int = 0, tokens: int = 7) -> Answer:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(predicted, record.num_ids, generator=generator) * 4
    kept = keep_top(logits, torch.eye(record.num_ids), None, torch.zeros(predicted).long(), Keeping(*of(record)))
    states = torch.randn(record.num_layers, matched, record.dim, generator=generator)
    return Answer(kept.ids, kept.numbers, states, 1.5, tokens)


def of(record: TokenRecord) -> tuple[int, int, float]:
    return record.num_kept, record.num_ids, 1.0


@pytest.mark.parametrize("num_ids", [3, 300, 65536, 65537, 200_000])
@pytest.mark.parametrize(("predicted", "matched"), [(0, 0), (1, 0), (5, 7), (0, 3)])
@pytest.mark.parametrize(("layers", "precision"), [(0, "bf16"), (2, "bf16"), (2, "int8")])
def test_a_record_comes_back(num_ids, predicted, matched, layers, precision):
    record = TokenRecord(layers, DIM if layers else 0, precision, 3, num_ids)
    ids = torch.tensor([[0, num_ids // 2, num_ids - 1], [num_ids - 1, 1, 0]] * 3)[:predicted]
    logs = (torch.randn(6, 4) * 5).log_softmax(-1)[:predicted]
    given = Answer(ids, logs, torch.randn(layers, matched, record.dim), -2.25, 2**32 - 1)
    packed = record.pack(given)
    assert len(packed) % 8 == 0
    assert len(packed) <= record.num_bytes(max(predicted, matched))
    got = record.unpack(torch.frombuffer(bytearray(packed), dtype=torch.uint8).numpy())
    assert torch.equal(got.ids, ids)
    torch.testing.assert_close(got.numbers, logs, rtol=2**-10, atol=2e-3)  # all are moved to add up to 1
    torch.testing.assert_close(got.numbers.logsumexp(-1), torch.zeros(predicted), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.states.float(), given.states, rtol=1e-2, atol=2e-2)
    assert (got.task_loss, got.tokens) == (-2.25, 2**32 - 1)


@pytest.mark.parametrize(("num_ids", "most"), [(50257, 260), (128_256, 268), (262_144, 276)])
def test_64_ids_take_less_than_300_bytes(num_ids, most):
    assert TokenSizes(0, 0, "bf16", 64, num_ids).of_prediction == most
    record = TokenRecord(0, 0, "bf16", 64, num_ids)
    answer = Answer(torch.zeros(100, 64).long(), torch.zeros(100, 65), torch.zeros(0, 0, 0), 0.0, 0)
    assert len(record.pack(answer)) == 100 * most + 16


@pytest.mark.parametrize("num_ids", [300, 200_000])
def test_draws_come_back(num_ids):
    record = TokenRecord(0, 0, "bf16", 70_000 if num_ids > 300 else 50, num_ids, drawn=True)
    ids = torch.tensor([[0, num_ids - 1, 7, 5], [9, 0, 0, 0], [8, 2, 0, 0]])
    counts = torch.tensor([[40.0, 8, 1, 1], [50, 0, 0, 0], [30, 20, 0, 0]])
    given = Answer(ids, torch.cat([counts, torch.tensor([[0.5], [0.0], [1.25]])], -1), torch.zeros(0, 3, 0), 2.0, 9)
    packed = record.pack(given)
    got = record.unpack(torch.frombuffer(bytearray(packed), dtype=torch.uint8).numpy())
    assert torch.equal(got.ids, ids)
    assert torch.equal(got.numbers, given.numbers)
    assert len(packed) <= record.num_bytes(3)
    narrow = record.pack(Answer(ids[1:], given.numbers[1:], given.states, 2.0, 9))
    again = record.unpack(torch.frombuffer(bytearray(narrow), dtype=torch.uint8).numpy())
    assert torch.equal(again.ids, ids[1:, :2])
    nothing = record.pack(Answer(ids[:0], given.numbers[:0], torch.zeros(0, 0, 0), 0.0, 0))
    assert record.unpack(torch.frombuffer(bytearray(nothing), dtype=torch.uint8).numpy()).ids.shape == (0, 0)


def test_draws_of_several_sequences_are_as_wide_as_the_widest(tmp_path):
    record = TokenRecord(0, 0, "bf16", 50, 40, drawn=True)
    (tmp_path / "begun").mkdir()
    writer = PartWriter(tmp_path / "begun", 0)
    given = {0: torch.tensor([[50.0, 0, 0, 0.5]] * 6), 1: torch.tensor([[20.0, 20, 10, 1.5]])}
    for index, numbers in given.items():
        ids = torch.tensor([[3, 4, 5]] * len(numbers)) * (numbers[:, :-1] > 0)
        answer = Answer(ids, numbers, torch.zeros(0, 0, 0), 0.0, checksum(SAMPLES[index].input_ids))
        writer.add(index, record.pack(answer), tokens=7)
    writer.close()
    finish(tmp_path / "begun", tmp_path / "cache", record, about={}, counts=[len(given)])
    reader = Reader(tmp_path / "cache", record)
    said = list[Any]()
    batch = Collator(0, "tokens", isolate_documents=True)([SAMPLES[0], SAMPLES[1]])
    teacher = CachedTokens(reader, dtype=torch.float32, temperature=1.0)
    teacher.teach(batch, said.append, with_predictions=True, on_state=None)
    assert torch.equal(said[0].numbers, torch.cat([given[0], given[1]]))
    assert said[0].drawn
    assert teacher.in_words.endswith(" bytes a token")


def test_what_rounding_adds_to_a_gradient():
    """By logits, beside 2 p_R: an id's log is off by a part in 2^11 of itself, before all are made to add up to 1."""
    generator = torch.Generator().manual_seed(0)
    theirs, own = (torch.randn(200, 400, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    identity, labels = torch.eye(400, dtype=torch.float64), torch.zeros(200).long()
    for num_kept in (16, 400):
        kept = keep_top(theirs, identity, None, labels, Keeping(num_kept, 400, 1.0))
        record = TokenRecord(0, 0, "bf16", num_kept, 400)

        def gradient(kept: Kept) -> torch.Tensor:
            leaf = own.clone().requires_grad_()
            teacher = KeptPredictions(kept.ids, kept.numbers, 1.0, 1.0)
            sums = vocabulary_losses(leaf, identity, None, VocabularyTargets(labels, 0.0, teacher))
            return torch.autograd.grad(sums[0], leaf)[0]

        dense = own.softmax(-1) - theirs.softmax(-1)
        difference = (gradient(record.rounded(kept)) - dense).abs().sum(-1)
        entropy = -(theirs.softmax(-1) * theirs.log_softmax(-1)).sum(-1)
        assert bool((difference <= 2 * kept.numbers[:, -1].exp() + entropy / 2**10).all())
        if num_kept == 400:
            assert bool((difference > 1e-7).all())  # fp16 it is


# --- in a batch -------------------------------------------------------------------------------------------------------

SAMPLES = [Sample(list(range(5, 5 + length)), document_lengths=[length], index=i) for i, length in enumerate((7, 2, 9))]


def written_for(folder: Any, record: TokenRecord, sizes: dict[int, tuple[int, int]]) -> dict[int, Answer]:
    """A cache of answers of so many predictions and states; what is read of them."""
    (folder / "begun").mkdir()
    writer, given = PartWriter(folder / "begun", 0), dict[int, Answer]()
    for sample in SAMPLES:
        number = checksum(sample.input_ids)
        given[sample.index] = answer_of(record, *sizes[sample.index], seed=sample.index, tokens=number)
        writer.add(sample.index, record.pack(given[sample.index]), tokens=len(sample.input_ids))
    writer.close(lost=(0.5, 0.25, 10))
    finish(folder / "begun", folder / "cache", record, about={}, counts=[len(given)])
    return given


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_stand_where_they_were_asked_for(tmp_path, side):
    """Rows in any order, empty ones between them, and predictions of the completions alone."""
    record = TokenRecord(2, DIM, "bf16", 3, 40)
    spans = {0: (2, 5), 1: (1, 2), 2: (4, 9)}
    samples = [dataclasses.replace(one, label=spans[one.index]) for one in SAMPLES]
    given = written_for(tmp_path, record, {0: (3, 3), 1: (1, 1), 2: (5, 5)})
    collate = Collator(
        0, "tokens", side=side, of_completions=OfCompletions(task=False, predictions=True, features=True)
    )
    reader = Reader(tmp_path / "cache", record)
    teacher = CachedTokens(reader, dtype=torch.float32, temperature=2.0)
    batch = collate([None, samples[2], samples[0], None, samples[1]])
    states, said = dict[int, torch.Tensor](), list[Any]()
    teacher.teach(batch, said.append, with_predictions=True, on_state=states.__setitem__)
    order = (2, 0, 1)
    for place in range(2):
        expected = torch.cat([given[index].states[place] for index in order]).bfloat16().float()
        assert torch.equal(states[place][batch.matched_tokens], expected)
        assert not states[place][~batch.matched_tokens].any()
    rows = torch.arange(batch.labels.numel()) if batch.output_rows is None else batch.output_rows
    asked = batch.predicted.flatten()[rows]
    assert len(rows) == 6 + 1 + 8
    assert int(asked.sum()) == 9
    assert torch.equal(said[0].ids[asked], torch.cat([given[index].ids for index in order]))
    assert len(said[0].ids) == len(said[0].numbers) == len(rows)
    assert float(said[0].task_loss) == 4.5
    assert teacher.in_words.endswith(
        " bytes a token; of 10 predictions that were looked at, what is kept is 0.05 nats (KL) from the whole, and the "
        "rest has 2.50% of the probability"
    )
    nothing = collate([None, None])
    teacher.teach(nothing, said.append, with_predictions=True, on_state=states.__setitem__)
    assert not states[0].any()
    assert len(said[1].ids) == 0


def test_predictions_of_all_labels(tmp_path):
    record = TokenRecord(0, 0, "bf16", 3, 40)
    given = written_for(tmp_path, record, {0: (6, 0), 1: (1, 0), 2: (8, 0)})
    teacher = CachedTokens(Reader(tmp_path / "cache", record), dtype=torch.float32, temperature=2.0)
    said = list[Any]()
    batch = Collator(0, "tokens", isolate_documents=True)([SAMPLES[1], SAMPLES[2]])
    teacher.teach(batch, said.append, with_predictions=True, on_state=None)
    assert torch.equal(said[0].ids, torch.cat([given[1].ids, given[2].ids]))


def test_a_cache_of_other_tokens_is_said(tmp_path):
    record = TokenRecord(0, 0, "bf16", 3, 40)
    written_for(tmp_path, record, {0: (6, 0), 1: (1, 0), 2: (8, 0)})
    teacher = CachedTokens(Reader(tmp_path / "cache", record), dtype=torch.float32, temperature=2.0)
    other = dataclasses.replace(SAMPLES[0], input_ids=[6, 5, 7, 8, 9, 10, 11])
    with pytest.raises(CheckpointError, match=r"has other tokens than sequence 0 of the data; remove it, and it is "):
        teacher.teach(
            Collator(0, "tokens")([other]), lambda _: pytest.fail("taught"), with_predictions=True, on_state=None
        )


@pytest.mark.parametrize("of_completions", [None, OfCompletions(task=False, predictions=True, features=True)])
def test_the_host_waits_for_no_device_to_hold_tokens_against_the_cache(tmp_path, of_completions):
    """They are told by checksums, which are found where the batch is made."""
    record = TokenRecord(2, DIM, "int8", 3, 40)
    sizes = {0: (6, 7), 1: (1, 2), 2: (8, 9)} if of_completions is None else {0: (1, 1), 1: (1, 1), 2: (1, 1)}
    written_for(tmp_path, record, sizes)
    teacher = CachedTokens(Reader(tmp_path / "cache", record), dtype=torch.float32, temperature=2.0)
    samples = [dataclasses.replace(one, label=(1, 2)) for one in SAMPLES]
    batch = Collator(0, "tokens", of_completions=of_completions)([samples[2], None, samples[0]])
    assert batch.checksums == (checksum(samples[2].input_ids), 0, checksum(samples[0].input_ids))
    batch = batch.to(DEVICE)
    for _ in range(2):
        assert waits_of(lambda: teach(teacher, batch)) == []
    with pytest.raises(CheckpointError, match="has other tokens than sequence 2"):
        teach(teacher, dataclasses.replace(batch, checksums=(5, *batch.checksums[1:])))


def teach(teacher: CachedTokens, batch: Any) -> None:
    teacher.teach(batch, lambda _: None, with_predictions=True, on_state=lambda *_: None)


# --- in which order ---------------------------------------------------------------------------------------------------

STEPS, LANES = 5, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CorpusData:
    folder = tmp_path_factory.mktemp("corpus")
    data = Data.model_validate({"train": [{"path": str(write_corpus(folder / "train.jsonl"))}]})
    task = CausalLm(kind="causal_lm", sequence_length=16)
    return CorpusData(data, task, write_tokenizer(folder / "tokenizer"), list_data(data), max_heldout=4)


def questions(data: CorpusData, done: list[Part], rank: int, num_ranks: int, *, steps: int = STEPS) -> StreamQuestions:
    reading = {"seed": 1, "num_workers": 0, "timeout_s": 60.0}
    shares = {"steps": steps, "num_lanes": LANES, "size": 2, "rank": rank, "num_ranks": num_ranks}
    return StreamQuestions(data, done, **shares, **reading)


def asked(of_ranks: list[StreamQuestions]) -> list[list[tuple[int, ...]]]:
    """The microbatches of all ranks: what is read, and which sequence it is called."""
    found = []
    for one in of_ranks:
        for _ in range(one.rounds):
            found.append([(sample.index, *sample.input_ids) for sample in one.next()])
        assert one.rounds == 0
        assert one.next() == []
        one.close()
    return sorted(found)


def test_any_number_of_ranks_asks_the_same_microbatches(corpus):
    whole = asked([questions(corpus, [], 0, 1)])
    assert [len(one) for one in whole].count(1) == LANES  # the last steps of lanes
    assert sorted(index for one in whole for index, *_ in one) == [*range(STEPS * LANES)]
    stream = open_stream(corpus, num_lanes=LANES, seed=1)
    rows = {row[0]: row[1:] for one in whole for row in one}
    for step in range(STEPS):
        (batch,) = next(stream)
        assert batch.samples == tuple(range(step * LANES, (step + 1) * LANES))
        for row, index in enumerate(batch.samples):
            assert tuple(batch.input_ids[row][batch.kept_tokens[row]].tolist()) == rows[index]
    for num_ranks in (2, 3, 5):
        assert asked([questions(corpus, [], rank, num_ranks) for rank in range(num_ranks)]) == whole


def attempt(data: CorpusData, folder: Any, num_ranks: int, *, most: int = 999, steps: int = STEPS) -> Any:
    """Ask each rank for at most so many microbatches, each a part; what was asked, and how many each lane has."""
    done, found, counts = written(folder, lambda said: None), [], dict[int, int]()
    for rank in range(num_ranks):
        one = questions(data, done, rank, num_ranks, steps=steps)
        for _ in range(min(most, one.rounds)):
            writer = PartWriter(folder, rank)
            found.append([(sample.index, *sample.input_ids) for sample in one.next()])
            for index, *ids in found[-1]:
                writer.add(index, b"", tokens=len(ids))
            writer.close(one.left())
        counts |= one.counts
        one.close()
    return found, [counts[lane] for lane in range(LANES)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 3)])
def test_what_is_written_is_not_asked_again(corpus, tmp_path, before, after):
    whole = asked([questions(corpus, [], 0, 1)])
    for most in range(0, 12 // before, 2):
        folder = tmp_path / str(most)
        folder.mkdir()
        found, _ = attempt(corpus, folder, before, most=most)
        done = written(folder, pytest.fail)
        assert sorted([*found, *asked([questions(corpus, done, rank, after) for rank in range(after)])]) == whole


def cut_one(folder: Any, sample: int) -> set[int]:
    """Damage the index of the part that has a sample; all that are lost with it."""
    for part in folder.glob("*.npz"):
        if part.stat().st_size:
            with np.load(part) as index:
                lost = set(index["rows"][:, 0].tolist())
            if sample in lost:
                part.write_bytes(b"")
                return lost
    raise AssertionError(sample)


NOTHING = Record(0, 0, 0, "bf16")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_what_is_lost_of_what_is_written_is_asked_again_and_nothing_else(corpus, tmp_path, before, after):
    """Whichever part it is: a lane goes on where all before it is there, and past what is there behind that."""
    (tmp_path / "first").mkdir()
    whole, _ = attempt(corpus, tmp_path / "first", before)
    for number, one in enumerate(whole):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "first", folder)
        lost = cut_one(folder, one[0][0])
        (again,), counts = attempt(corpus, folder, after)
        assert {index for index, *_ in again} == lost
        assert again in whole
        finish(folder, tmp_path / "whole", NOTHING, about={}, counts=counts)
        assert len(Reader(tmp_path / "whole", NOTHING)) == STEPS * LANES
        shutil.rmtree(tmp_path / "whole")


def test_lanes_end_before_the_steps_do(tmp_path):
    """Where sources are at their end, and are not read again: what is missing behind it is no hole."""
    source = {"path": str(write_corpus(tmp_path / "train.jsonl")), "epochs": 1}
    data = Data.model_validate({"train": [source]})
    task = CausalLm(kind="causal_lm", sequence_length=24)
    corpus = CorpusData(data, task, write_tokenizer(tmp_path / "tokenizer"), list_data(data), max_heldout=4)
    (tmp_path / "first").mkdir()
    whole, counts = attempt(corpus, tmp_path / "first", 1, steps=40)
    assert sum(counts) == sum(map(len, whole))
    assert all(4 < count < 38 for count in counts)
    lost = cut_one(tmp_path / "first", LANES)  # the second of lane 0
    with pytest.raises(CheckpointError, match=r"start the same command again, and what is missing is asked for"):
        finish(tmp_path / "first", tmp_path / "whole", NOTHING, about={}, counts=counts)
    again, once_more = attempt(corpus, tmp_path / "first", 2, steps=40)
    assert {index for one in again for index, *_ in one} >= lost
    assert once_more == counts
    finish(tmp_path / "first", tmp_path / "whole", NOTHING, about={}, counts=counts)
    # a lane that is read beyond the steps, as another one is far behind, has no fewer or more than these
    steps = min(counts) - 1
    (tmp_path / "short").mkdir()
    attempt(corpus, tmp_path / "short", 1, steps=steps)
    for sample in (0, (steps - 1) * LANES, (steps - 1) * LANES + 1):
        cut_one(tmp_path / "short", sample)
    assert attempt(corpus, tmp_path / "short", 1, steps=steps)[1] == [steps] * LANES


def test_a_set_is_asked_for_what_is_not_written():
    samples = [Sample([1] * length, index=index) for index, length in enumerate((3, 9, 1, 5, 7))]

    def rest(done: list[Part], num_ranks: int) -> list[list[int]]:
        ranks = [SetQuestions(samples, done, size=2, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        return [[sample.index for sample in one.next()] for one in ranks for _ in range(one.rounds)]

    assert rest([], 1) == [[1, 4], [3, 0], [2]]
    assert rest([], 2) == [[1, 4], [2], [3, 0]]
    half = [Part(np.array([[1, 0, 0, 0], [4, 0, 0, 0], [3, 0, 0, 0]]), None, np.zeros(3))]
    assert rest(half, 1) == [[3, 0], [2]]
