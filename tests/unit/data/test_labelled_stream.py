"""Task data step by step: what a step holds follows from its number, so that a run goes on as if never stopped."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted_ds.data.labelled_stream import LabelledStream
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.errors import DataError

COLLATE = Collator(pad_id=0, labels="class", multiple_of=4)
LONGEST = 60


def made_samples(count: int, seed: int = 0) -> list[Sample]:
    """Short sentences; each begins with its own number."""
    generator = random.Random(seed)
    return [Sample([1 + index, *[7] * generator.randint(4, LONGEST - 1)], index % 2) for index in range(count)]


def stream_of(samples: list[Sample], *, rank: int = 0, world_size: int = 1, state: Any = None, **options: Any):
    division = StepDivision(
        options.pop("global_batch_size", 12),
        options.pop("micro_batch_size", None if "micro_batch_tokens" in options else 2),
        options.pop("micro_batch_tokens", None),
        rank=rank,
        world_size=world_size,
    )
    collate = options.pop("collate", COLLATE)
    return LabelledStream(samples, collate, division, state=state, **{"seed": 3, "grouping_window_steps": 1, **options})


def numbers_in(batches: list[Batch]) -> list[int]:
    """Which samples a rank's microbatches hold."""
    return [
        int(ids[kept][0]) - 1
        for batch in batches
        for ids, kept in zip(batch.input_ids, batch.kept_tokens, strict=True)
        if kept.any()
    ]


def global_steps(samples: list[Sample], count: int, world_size: int, **options: Any) -> Iterator[list[int]]:
    """What each step holds over all ranks."""
    ranks = [stream_of(samples, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for _ in range(count):
        of_ranks = [next(rank) for rank in ranks]
        assert len({len(batches) for batches in of_ranks}) == 1
        yield sorted(number for batches in of_ranks for number in numbers_in(batches))


def permutations(seed: int, count: int, epochs: int) -> list[int]:
    """The order that published results were trained in."""
    orders = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(order)
        orders += order
    return orders


OPTIONS = [
    {},
    {"grouping_window_steps": 4},
    {"micro_batch_tokens": 128},
    {"micro_batch_tokens": 128, "grouping_window_steps": 4},
]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_go_through_the_epochs_permutations_on_any_number_of_ranks(
    options: dict[str, int], world_size: int
) -> None:
    if world_size == 4 and not options.get("micro_batch_tokens"):
        options = {**options, "micro_batch_size": 3}
    steps = list(global_steps(made_samples(50), 16, world_size, **options))
    order, window = permutations(3, 50, 4), 12 * options.get("grouping_window_steps", 1)
    for number in range(16 * 12 // window):
        held = steps[number * window // 12 : (number + 1) * window // 12]
        assert {len(step) for step in held} == {12}
        assert Counter(i for step in held for i in step) == Counter(order[number * window : (number + 1) * window])
    alone = list(
        global_steps(made_samples(50), 16, 1, **{**options, "micro_batch_size": None, "micro_batch_tokens": 64})
    )
    assert steps == alone


def test_without_grouping_rows_stay_in_the_order_of_the_permutation() -> None:
    samples = made_samples(40)
    for rank in range(2):
        (first, second, third) = (next(stream) for stream in [stream_of(samples, rank=rank, world_size=2)] * 3)
        order = permutations(3, 40, 1)[: 3 * 12]
        assert numbers_in(first) + numbers_in(second) + numbers_in(third) == order[rank::2]
        assert {len(batch.labels) for batch in first} == {2}


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 25),
    st.integers(0, 2**20),
)
def test_stopped_and_gone_on_is_as_never_stopped(
    count: int, window: int, by_tokens: bool, ranks_before: int, ranks_after: int, stop: int, seed: int
) -> None:
    samples = made_samples(count)
    options = {"seed": seed, "grouping_window_steps": window}
    if by_tokens:
        options["micro_batch_tokens"] = 100
    whole = list(global_steps(samples, stop + 6, 1, **options))
    stopped = stream_of(samples, rank=ranks_before - 1, world_size=ranks_before, **options)
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["step"] == stop
    assert list(global_steps(samples, 6, ranks_after, state=state, **options)) == whole[stop:]
    if ranks_before == ranks_after:  # then microbatches too are the same, token for token
        gone_on = stream_of(samples, rank=ranks_before - 1, world_size=ranks_before, state=state, **options)
        for _ in range(3):
            for mine, theirs in zip(next(stopped), next(gone_on), strict=True):
                assert mine.input_ids.equal(theirs.input_ids)
                assert mine.labels.equal(theirs.labels)
        assert stopped.state_dict() == gone_on.state_dict()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_at_the_very_end_of_an_epoch_the_next_one_begins(options: dict[str, int]) -> None:
    samples = made_samples(48)
    stream = stream_of(samples, **options)
    first = [number for _ in range(4) for number in numbers_in(next(stream))]
    assert stream.progress() == {"data/epoch": 1.0}
    gone_on = stream_of(samples, state=stream.state_dict(), **options)
    second = [number for _ in range(4) for number in numbers_in(next(gone_on))]
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert gone_on.progress() == {"data/epoch": 2.0}


def test_going_on_far_away_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffles = []
    plain = random.Random.shuffle
    monkeypatch.setattr(random.Random, "shuffle", lambda self, order: (shuffles.append(len(order)), plain(self, order)))
    samples = made_samples(1000)
    state = {**stream_of(samples).state_dict(), "step": 10**9}
    stream = stream_of(samples, state=state)
    assert len(numbers_in(next(stream))) == 12
    assert shuffles == [1000]
    assert stream.progress()["data/epoch"] == pytest.approx(12 * 10**6, rel=1e-6)


def test_a_state_of_other_batches_is_refused_with_what_differs() -> None:
    samples = made_samples(40)
    state = stream_of(samples).state_dict()
    others = [
        ({"samples": samples[:-1]}, "num_samples was 40 and is 39; samples_sha256 was "),
        ({"samples": [*samples[:-1], Sample(samples[-1].input_ids, 0)]}, "batches: samples_sha256 was "),
        ({"seed": 4}, "batches: seed was 3 and is 4. A phase goes on only with"),
        ({"global_batch_size": 6}, "batches: global_batch_size was 12 and is 6."),
        ({"grouping_window_steps": 2}, "batches: grouping_window_steps was 1 and is 2."),
    ]
    for options, text in others:
        with pytest.raises(DataError) as caught:
            stream_of(options.pop("samples", samples), state=state, **options)  # type: ignore[arg-type]
        assert text in str(caught.value)
    for damage in ({"kind": "documents"}, {"version": 2}, {"step": None}, {"step": -1}):
        with pytest.raises(DataError, match="is none that labelled data can go on from"):
            stream_of(samples, state={**state, **damage})


def padding_of(stream: LabelledStream, steps: int) -> float:
    batches = [batch for _ in range(steps) for batch in next(stream)]
    tokens = sum(int(batch.kept_tokens.sum()) for batch in batches)
    return 1 - tokens / sum(batch.kept_tokens.numel() for batch in batches)


def test_little_of_short_sentences_is_padding() -> None:
    generator = random.Random(0)
    samples = [Sample([7] * generator.randint(5, 60), 0) for _ in range(8000)]
    options = {"collate": Collator(pad_id=0, labels="class"), "global_batch_size": 64, "world_size": 2}
    plain = padding_of(stream_of(samples, **{**options, "micro_batch_size": 16}), 32)
    assert plain > 0.35
    grouped = {"grouping_window_steps": 16}
    assert padding_of(stream_of(samples, **options, **grouped, micro_batch_size=16), 32) < 0.1
    assert padding_of(stream_of(samples, **options, **grouped, micro_batch_tokens=1024), 32) < 0.1
