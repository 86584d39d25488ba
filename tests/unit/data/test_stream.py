"""The stream is a pure function of recipe, seed and number: however it is cut up, stopped and taken up again."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ted_ds.config.data import Data
from ted_ds.config.tasks import CausalLm
from ted_ds.data.cleaning import is_heldout
from ted_ds.data.loader import Batch, Collator
from ted_ds.data.reading.listing import list_data
from ted_ds.data.step_division import StepDivision
from ted_ds.data.stream.corpus_stream import CorpusStream, merge_states
from ted_ds.data.stream.lane import Lane, make_units
from ted_ds.data.stream.mixture import shares_at
from ted_ds.data.stream.order import permuted, shuffled
from ted_ds.data.stream.settings import StreamSettings, stream_settings
from ted_ds.data.stream.units import Units
from ted_ds.errors import DataError
from tests.tiny import ROOT, write_rows

SEPARATOR = 1
PAD = 0
BOS = (900, 901)
"""What documents may start with: no id of a byte."""
# what the hashes gave when they were first used: runs depend on it
PERMUTED = [0, 7, 6, 3, 9, 1, 8, 5, 2, 4]
SHUFFLED = ["f", "c", "a", "e", "b", "d"]
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "csv", "parquet", "txt")


class Bytes:
    """A tokenizer of one id per byte, shifted past the special ones; can be sent to another process."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 2 for byte in text.encode()] for text in texts]


def write_texts(path: Path, texts: list[str]) -> Path:
    """A file of documents in the format of its ending."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif path.name.endswith(".jsonl.gz"):  # of two members
        path.write_bytes(gzip.compress(lines[: len(lines) // 2]) + gzip.compress(lines[len(lines) // 2 :]))
    elif path.name.endswith(".jsonl.zst"):
        compress = zstandard.ZstdCompressor().compress
        path.write_bytes(b"".join(compress(lines[begin : begin + 700]) for begin in range(0, len(lines), 700)))
    elif path.name.endswith(".csv"):
        path.write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)), encoding="utf-8")
    elif path.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    else:
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def make_settings(
    paths: list[Path],
    *,
    num_lanes: int = 4,
    seed: int = 0,
    sequence_length: int = 24,
    packing: str = "wrap",
    sources: list[dict[str, Any]] | None = None,
    start: tuple[int, ...] = (),
    **data: Any,
) -> StreamSettings:
    """A stream over files, nothing held out unless said so."""
    given = sources or [{} for _ in paths]
    train = [{"path": str(path), **one} for path, one in zip(paths, given, strict=True)]
    whole = Data.model_validate({"train": train, "evaluation": train, "shuffle_mib": 0.01, **data})
    if "heldout_fraction" in data:
        whole = whole.model_copy(update={"evaluation": None})
    task = CausalLm(
        kind="causal_lm",
        sequence_length=sequence_length,
        packing={"method": packing, "window": 5},  # type: ignore[arg-type]
    )
    listing = list_data(whole)
    return stream_settings(whole, task, listing.train, seed=seed, num_lanes=num_lanes, separator=SEPARATOR, start=start)


def open_stream(
    of: StreamSettings,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    state: dict | None = None,
    micro: int = 1,
) -> CorpusStream:
    return CorpusStream(
        of,
        Bytes(),
        Collator(PAD, "tokens", isolate_documents=True),
        StepDivision(of.num_lanes, micro, rank=rank, world_size=world_size),
        num_workers=workers,
        timeout_s=60,
        state=state,
    )


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [
        tuple(ids[kept].tolist())
        for batch in batches
        for ids, kept in zip(batch.input_ids, batch.kept_tokens, strict=True)
    ]


class Run:
    """A stream on all ranks at once, as one: for each step the rows of the global batch, by lane."""

    def __init__(self, of: StreamSettings, *, world_size: int = 1, workers: int = 0, state: dict | None = None) -> None:
        self._ranks = [
            open_stream(of, rank=rank, world_size=world_size, workers=workers, state=state)
            for rank in range(world_size)
        ]
        self._num_lanes = of.num_lanes

    def steps(self, count: int) -> list[list[tuple[int, ...]]]:
        steps = []
        for _ in range(count):
            rows: list[tuple[int, ...]] = [()] * self._num_lanes
            for rank, stream in enumerate(self._ranks):
                rows[rank :: len(self._ranks)] = rows_of(next(stream))
            steps.append(rows)
        return steps

    def state(self) -> dict[str, Any]:
        return json.loads(json.dumps(merge_states([stream.state_dict() for stream in self._ranks])))

    def close(self) -> None:
        for stream in self._ranks:
            stream.close()


def numbered(count: int, *, first: int = 0, length: int = 5) -> list[str]:
    """Distinct texts, of lengths that differ."""
    return [f"{number} " + "x" * (number * 7 % (2 * length)) for number in range(first, first + count)]


def documents_in(steps: list[list[tuple[int, ...]]], *, is_over: bool = True) -> Iterator[str]:
    """The documents of wrapped sequences, in the order of lanes."""
    for lane in zip(*steps, strict=True):
        text: list[int] = []
        for token in (token for row in lane for token in row):
            if token == SEPARATOR:
                yield bytes(value - 2 for value in text).decode()
                text = []
            elif token in BOS:
                assert token == BOS[0] or not text
            else:
                text.append(token)
        if text and is_over:  # a last sequence of nothing but a separator predicts nothing, and is left out
            yield bytes(value - 2 for value in text).decode()


# --- stop + resume = never stopped ------------------------------------------------------------------------------------

source_strategy = st.fixed_dictionaries(
    {
        "format": st.sampled_from(FORMATS),
        "count": st.integers(1, 120),
        "length": st.integers(1, 40),
        "weight": st.one_of(
            st.floats(0.05, 9), st.just("size"), st.just([[0, 1.0], [4, 0.1]]), st.just([[2, 0.0], [6, 3.0]])
        ),
        "epochs": st.one_of(st.none(), st.integers(1, 3)),
        "max_tokens": st.one_of(st.none(), st.integers(1, 4000)),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sources=st.lists(source_strategy, min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    num_lanes=st.sampled_from([1, 2, 4, 6, 12]),
    sequence_length=st.integers(2, 60),
    packing=st.sampled_from(["wrap", "best_fit"]),
    deduplicate=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    worlds=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=3, max_size=3),
    stops=st.tuples(st.integers(0, 14), st.integers(0, 14)),
)
@pytest.mark.lengthy
def test_stop_and_resume_is_never_stopped(
    tmp_path_factory: pytest.TempPathFactory,
    sources: list[dict],
    seed: int,
    num_lanes: int,
    sequence_length: int,
    packing: str,
    deduplicate: bool,
    temperature: float,
    worlds: list[int],
    stops: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("data")
    paths = [
        write_texts(folder / f"{i}.{one['format']}", numbered(one["count"], first=1000 * i, length=one["length"]))
        for i, one in enumerate(sources)
    ]
    keys = ("weight", "epochs", "max_tokens")
    sources[0]["weight"] = 1.0  # some source has a weight at every step
    of = make_settings(
        paths,
        seed=seed,
        num_lanes=num_lanes,
        sequence_length=sequence_length,
        packing=packing,
        sources=[{key: one[key] for key in keys} for one in sources],
        cleaning={"deduplicate": deduplicate},
        mixture_temperature=temperature,
    )
    worlds = [world if num_lanes % world == 0 else 1 for world in worlds]
    first, second, last = *stops, 6
    whole = Run(of)
    expected = whole.steps(first + second + last)
    parts = []
    state: dict | None = None
    for world, count in zip(worlds, (first, second, last), strict=True):
        run = Run(of, world_size=world, state=state)
        parts += run.steps(count)
        state = run.state()
    assert parts == expected
    assert state == whole.state()


@pytest.mark.parametrize("packing", ["wrap", "best_fit"])
@pytest.mark.parametrize(("ending", "start"), [*((ending, ()) for ending in FORMATS), ("jsonl", BOS), ("txt", BOS)])
def test_every_stop_point_of_two_epochs_resumes_exactly(
    tmp_path: Path, ending: str, start: tuple[int, ...], packing: str
) -> None:
    of = make_settings(
        [write_texts(tmp_path / f"a.{ending}", numbered(90))],
        num_lanes=2,
        packing=packing,
        sources=[{"epochs": 2}],
        start=start,
    )
    whole = Run(of)
    steps, states = [], [whole.state()]
    while not steps or any(steps[-1]):
        steps += whole.steps(1)
        states.append(whole.state())
    assert len(steps) > 20
    steps += whole.steps(2)
    for at, state in enumerate(states[:-1]):
        assert Run(of, world_size=1 + at % 2, state=state).steps(3) == steps[at : at + 3]


def test_a_state_is_small_json_and_does_not_grow(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", numbered(300))], num_lanes=4)
    run = Run(of)
    run.steps(5)
    early = len(json.dumps(run.state()))
    run.steps(500)
    assert len(json.dumps(run.state())) < early + 200
    assert early < 3000


def test_a_state_is_entered_without_reading_what_lies_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(20_000, length=40))
    of = make_settings([path], num_lanes=1, sequence_length=512)
    run = Run(of)
    run.steps(600)
    state = run.state()
    assert run._ranks[0].progress()["data/a/epochs"] > 0.3
    read = []
    from ted_ds.data.reading import lines

    monkeypatch.setattr(
        lines,
        "read_range",
        lambda url, start, end, real=lines.read_range: read.append(end - start) or real(url, start, end),
    )
    Run(of, state=state).steps(1)
    assert sum(read) < 0.1 * path.stat().st_size


# --- every document exactly once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("num_lanes", "count"), [(1, 50), (4, 200), (8, 5), (6, 1)])
def test_an_epoch_holds_every_document_once_on_any_number_of_lanes(
    tmp_path: Path, ending: str, num_lanes: int, count: int
) -> None:
    texts = numbered(count)
    of = make_settings([write_texts(tmp_path / f"a.{ending}", texts)], num_lanes=num_lanes, sources=[{"epochs": 2}])
    run = Run(of)
    steps: list[list[tuple[int, ...]]] = []
    while not steps or any(steps[-1]):
        steps += run.steps(1)
    assert Counter(documents_in(steps)) == Counter(texts * 2)
    epochs = run._ranks[0].progress()["data/a/epochs"]
    assert epochs == pytest.approx(2, abs=1e-9) or epochs > 2


def test_lanes_end_at_about_the_same_step(tmp_path: Path) -> None:
    of = make_settings(
        [write_texts(tmp_path / "a.jsonl", numbered(4000))], num_lanes=8, sources=[{"epochs": 1}], sequence_length=64
    )
    run, filled = Run(of), []
    while not filled or filled[-1]:
        filled.append(sum(bool(row) for row in run.steps(1)[0]))
    full = sum(count == 8 for count in filled)
    assert full > 0.85 * (len(filled) - 1)


def test_long_documents_are_whole_with_best_fit_and_only_then(tmp_path: Path) -> None:
    texts = [f"{number:03}" + "y" * (number % 17) for number in range(120)]
    path = write_texts(tmp_path / "a.jsonl", texts)
    of_kind = {
        method: make_settings([path], packing=method, num_lanes=2, sources=[{"epochs": 1}])
        for method in ("wrap", "best_fit")
    }
    whole: dict[str, int] = {}
    for method, of in of_kind.items():
        run, rows = Run(of), []
        while (step := run.steps(1)[0]) and any(step):
            rows += [row for row in step if row]
        encoded = {tuple(ids) for ids in Bytes()(texts)}
        pieces = [tuple(piece) for row in rows for piece in _split(row)]
        whole[method] = sum(piece in encoded for piece in pieces)
        tokens = sum(len(row) for row in rows)
        assert tokens == sum(len(ids) + 1 for ids in Bytes()(texts))
        waste = 1 - tokens / (24 * len(rows))
        assert waste < (0.03 if method == "wrap" else 0.15)
    assert whole["best_fit"] == len(texts) > whole["wrap"]


def _split(row: tuple[int, ...]) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for token in row:
        if token == SEPARATOR:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [piece for piece in pieces if piece]


def test_short_documents_and_copies_are_left_out_when_asked_for(tmp_path: Path) -> None:
    texts = ["aa", "  bbb  ", "cccc", "cccc", "ddddd"] * 3
    path = write_texts(tmp_path / "a.jsonl", texts)

    def one_epoch(**cleaning: Any) -> Counter[str]:
        run = Run(make_settings([path], num_lanes=1, sources=[{"epochs": 1}], cleaning=cleaning))
        steps: list[list[tuple[int, ...]]] = []
        while not steps or any(steps[-1]):
            steps += run.steps(1)
        return Counter(documents_in(steps))

    assert one_epoch() == Counter(texts)
    assert one_epoch(min_characters=4) == {"cccc": 6, "ddddd": 3}
    assert one_epoch(deduplicate=True) == {"aa": 1, "  bbb  ": 1, "cccc": 1, "ddddd": 1}


def test_heldout_documents_are_never_in_the_stream(tmp_path: Path) -> None:
    texts = numbered(300)
    of = make_settings([write_texts(tmp_path / "a.jsonl", texts)], heldout_fraction=0.3, sources=[{"epochs": 1}])
    run, steps = Run(of), []
    while not steps or any(steps[-1]):
        steps += run.steps(1)
    assert Counter(documents_in(steps)) == Counter(text for text in texts if not is_heldout(text, 0.3))


def test_epochs_and_seeds_are_shuffled_differently(tmp_path: Path) -> None:
    texts = numbered(60)
    path = write_texts(tmp_path / "a.jsonl", texts)
    orders = []
    for seed in (0, 1):
        run = Run(make_settings([path], num_lanes=1, seed=seed))
        orders.append(list(documents_in(run.steps(60), is_over=False))[:120])
    first, second = orders[0][:60], orders[0][60:]
    assert sorted(first) == sorted(second) == sorted(texts)
    assert first != second
    assert first != orders[1][:60]
    assert first != texts


# --- mixtures ---------------------------------------------------------------------------------------------------------


def token_shares(of: StreamSettings, num_steps: int, *, start: int = 0) -> list[float]:
    stream = open_stream(of)
    before = {}
    for step in range(num_steps):
        if step == start:
            before = stream.progress()
        next(stream)
    after = stream.progress()
    counts = [after[f"data/{one.name}/tokens"] - before.get(f"data/{one.name}/tokens", 0) for one in of.sources]
    return [count / sum(counts) for count in counts]


@pytest.fixture
def two_sources(tmp_path: Path) -> list[Path]:
    """One of long documents and one of short ones."""
    return [
        write_texts(tmp_path / "long.jsonl", [f"{number} " + "x" * 150 for number in range(100)]),
        write_texts(tmp_path / "short.jsonl", numbered(300, first=1000)),
    ]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.02, 0.98)])
def test_weights_are_shares_of_tokens_whatever_the_lengths_of_documents(
    two_sources: list[Path], weights: tuple[float, float]
) -> None:
    of = make_settings(two_sources, sources=[{"weight": weight} for weight in weights], sequence_length=64)
    shares = token_shares(of, 300)
    assert shares[0] == pytest.approx(weights[0] / sum(weights), abs=0.02)


def test_lanes_do_not_all_begin_with_the_same_source(two_sources: list[Path]) -> None:
    of = make_settings(two_sources, num_lanes=64, sequence_length=160, sources=[{"weight": 0.3}, {"weight": 0.7}])
    assert 0.2 < token_shares(of, 1)[0] < 0.8


def test_temperature_brings_small_weights_up(two_sources: list[Path]) -> None:
    weights = [{"weight": 16}, {"weight": 1}]
    plain = make_settings(two_sources, sources=weights)
    warm = make_settings(two_sources, sources=weights, mixture_temperature=2)
    assert shares_at(plain, 0, [True, True])[1] == pytest.approx(1 / 17)
    assert shares_at(warm, 0, [True, True])[1] == pytest.approx(1 / 5)
    assert token_shares(warm, 200)[1] == pytest.approx(1 / 5, abs=0.02)


def test_a_weight_may_be_the_size_of_the_files(two_sources: list[Path]) -> None:
    of = make_settings(two_sources, sources=[{"weight": "size"}, {"weight": "size"}])
    sizes = [path.stat().st_size for path in two_sources]
    assert shares_at(of, 0, [True, True])[0] == pytest.approx(sizes[0] / sum(sizes))


def test_a_schedule_changes_the_shares_over_steps(two_sources: list[Path]) -> None:
    of = make_settings(
        two_sources,
        sequence_length=64,
        sources=[{"weight": [[0, 1.0], [100, 0.0]]}, {"weight": [[0, 0.0], [100, 1.0]]}],
    )
    assert [shares_at(of, step, [True, True])[0] for step in (0, 25, 100, 500)] == [1, 0.75, 0, 0]
    assert token_shares(of, 100)[0] == pytest.approx(0.5, abs=0.03)
    assert token_shares(of, 300, start=110) == [0, 1]


def test_a_source_that_may_be_read_no_further_leaves_its_share_to_the_others(two_sources: list[Path]) -> None:
    of = make_settings(two_sources, sources=[{"max_tokens": 2000}, {}], sequence_length=64, num_lanes=2)
    stream = open_stream(of)
    for _ in range(200):
        next(stream)
    tokens = stream.progress()["data/long/tokens"]
    assert 2000 <= tokens < 2000 + 2 * 160
    assert stream.progress()["data/short/tokens"] > 20_000


def test_a_stream_that_is_over_gives_rows_without_tokens_for_ever(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(5))
    of = make_settings([path], num_lanes=2, sources=[{"epochs": 1}])
    run = Run(of)
    run.steps(10)
    state = run.state()
    assert run.steps(3) == Run(of, state=state).steps(3) == [[(), ()]] * 3


# --- order ------------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(permuted(index, size, seed) for index in range(size)) == list(range(size))


def test_every_place_of_a_small_permutation_is_about_equally_likely() -> None:
    counts = Counter((permuted(0, 5, seed), permuted(1, 5, seed)) for seed in range(4000))
    assert len(counts) == 20
    assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5


def test_orders_are_the_same_for_ever() -> None:
    assert [permuted(index, 10, "a", 1) for index in range(10)] == PERMUTED
    assert shuffled("abcdef", 1) == SHUFFLED


# --- states of other streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"num_lanes": 2}, "num_lanes was 4, now 2"),
        ({"packing": "best_fit"}, "packing"),
        ({"start": BOS}, r"start was None, now \[900, 901\]"),
    ],
)
def test_a_state_of_another_stream_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(50))
    run = Run(make_settings([path]))
    run.steps(2)
    with pytest.raises(DataError, match=f"saved with other data settings, so it cannot go on: .*{named}"):
        Run(make_settings([path], **change), state=run.state())


def test_documents_start_with_what_they_are_told_to_and_nothing_else_changes(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(40))
    plain, started = (
        list(documents_in(Run(make_settings([path], num_lanes=2, sources=[{"epochs": 1}], start=start)).steps(60)))
        for start in ((), BOS)
    )
    assert sorted(plain) == sorted(numbered(40))
    assert started == plain


@pytest.mark.parametrize("packing", ["wrap", "best_fit"])
def test_position_0_of_every_document_is_its_start_unless_it_is_cut(tmp_path: Path, packing: str) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(60))
    of = make_settings([path], num_lanes=2, packing=packing, sources=[{"epochs": 1}], start=BOS)
    stream = open_stream(of, micro=2)
    firsts, documents = 0, 0
    for _ in range(60):
        (batch,) = next(stream)
        assert batch.position_ids is not None
        begins = (batch.position_ids == 0) & batch.kept_tokens
        is_start = batch.input_ids == BOS[0]
        assert not (is_start & ~begins).any()
        firsts += int((is_start & begins).sum())
        documents += int((batch.input_ids == SEPARATOR).sum())
        if packing == "best_fit":  # no document is longer than a sequence here
            assert (is_start == begins).all()
    assert firsts == documents == 60


def test_tokens_that_start_documents_count_towards_a_budget(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["abc"] * 40)
    of = make_settings([path], num_lanes=1, sequence_length=12, sources=[{"max_tokens": 60}], start=BOS)
    stream = open_stream(of)
    given = [row for _ in range(10) for row in rows_of(next(stream)) if row]
    assert sum(map(len, given)) == 60  # ten documents of 2 + 3 + 1 tokens
    assert stream.progress()["data/a/tokens"] == 60


def test_a_state_from_before_documents_could_start_with_something_is_taken(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(50))
    run = Run(make_settings([path]))
    run.steps(2)
    state, expected = run.state(), run.steps(3)
    assert "start" not in state["stream"]
    assert Run(make_settings([path]), state=state).steps(3) == expected


def test_a_state_of_other_files_is_refused_and_of_moved_ones_taken(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(50))
    run = Run(make_settings([path]))
    run.steps(2)
    state, expected = run.state(), run.steps(3)
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved" / "a.jsonl")
    assert Run(make_settings([moved]), state=state).steps(3) == expected
    write_texts(moved, numbered(51))
    with pytest.raises(DataError, match="sources was"):
        Run(make_settings([moved]), state=state)


def test_a_state_of_one_rank_alone_is_refused_by_another(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", numbered(50))])
    stream = open_stream(of, rank=0, world_size=2)
    next(stream)
    with pytest.raises(DataError, match=r"lanes \[1, 3\] are missing; merge the states of all ranks first"):
        open_stream(of, rank=1, world_size=2, state=stream.state_dict())


# --- bad records ------------------------------------------------------------------------------------------------------


def test_bad_records_are_skipped_with_their_place_and_nothing_else_is(tmp_path: Path) -> None:
    texts = numbered(40)
    rows: list[Any] = [{"text": text} for text in texts]
    path = write_rows(tmp_path / "a.jsonl", [*rows[:20], {"text": None}, {"body": "b"}, *rows[20:]])
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n{"text"\n')
    run = Run(make_settings([path], num_lanes=2, sources=[{"epochs": 1}]))
    steps: list[list[tuple[int, ...]]] = []
    while not steps or any(steps[-1]):
        steps += run.steps(1)
    assert Counter(documents_in(steps)) == Counter(texts)
    bad = run._ranks[0].take_bad_records()
    assert run._ranks[0].take_bad_records() == []
    assert run._ranks[0].progress()["data/a/records"] == 44
    content = path.read_bytes()
    found = {content[int(record.position.split()[1]) :].split(b"\n")[0]: record.fault for record in bad}
    assert len(bad) == 4
    assert {record.file for record in bad} == {str(path)}
    assert found[b'{"text": null}'] == "no value in column 'text'; every row needs one"
    assert found[b'{"body": "b"}'] == "no column 'text'; it has body"
    assert found[b'{"text": "\xff"}'].startswith("not JSON in UTF-8")
    assert found[b'{"text"'].startswith("not JSON in UTF-8")


def test_a_source_that_vanishes_ends_the_stream_with_its_name(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(3000, length=30))
    run = Run(make_settings([path], num_lanes=2))
    run.steps(2)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl"):
        run.steps(10_000)


# --- worker processes -------------------------------------------------------------------------------------------------


@pytest.mark.lengthy
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 3), (2, 2)])
def test_workers_make_the_same_stream_and_the_same_states(tmp_path: Path, world_size: int, workers: int) -> None:
    paths = [
        write_texts(tmp_path / "a.jsonl", numbered(200)),
        write_texts(tmp_path / "b.parquet", numbered(90, first=500)),
    ]
    of = make_settings(paths, num_lanes=4, packing="best_fit")
    alone, helped = Run(of), Run(of, world_size=world_size, workers=workers)
    assert helped.steps(7) == alone.steps(7)
    assert helped.state() == alone.state(), "of what was used, not of what was read ahead"
    helped.close()
    again = Run(of, world_size=world_size, workers=workers, state=alone.state())
    assert again.steps(5) == alone.steps(5)
    again.close()


@pytest.mark.lengthy
def test_workers_start_where_the_folder_for_temporary_files_has_a_long_name(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "a.jsonl", numbered(50))
    program = (
        "from pathlib import Path\nfrom tests.unit.data.test_stream import Run, make_settings\n"
        f"if __name__ == '__main__':\n    print(len(Run(make_settings([Path({str(data)!r})]), workers=1).steps(2)))\n"
    )
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    (tmp_path / "main.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2\n", done.stderr


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    packing=st.sampled_from(["wrap", "best_fit"]),
    weights=st.tuples(st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([0.3, 1.0, 4.0])),
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=3, max_size=3),
    workers=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    stops=st.tuples(st.integers(0, 14), st.integers(0, 14)),
)
def test_stop_and_resume_is_never_stopped_whatever_the_number_of_workers(
    tmp_path: Path,
    seed: int,
    packing: str,
    weights: tuple[float, float],
    worlds: list[int],
    workers: list[int],
    stops: tuple[int, int],
) -> None:
    paths = [
        write_texts(tmp_path / "a.jsonl.zst", numbered(120)),
        write_texts(tmp_path / "b.parquet", numbered(50, first=500)),
    ]
    of = make_settings(
        paths, num_lanes=4, seed=seed, packing=packing, sources=[{"weight": weight} for weight in weights]
    )
    whole = Run(of)
    counts = (*stops, 6)
    expected = whole.steps(sum(counts))
    parts, state = [], None
    for world, processes, count in zip(worlds, workers, counts, strict=True):
        run = Run(of, world_size=world, workers=processes, state=state)
        parts += run.steps(count)
        state = run.state()
        run.close()
    assert parts == expected
    assert state == whole.state()


def worker_pids() -> set[int]:
    """Python processes whose environment or parents show that this process started them, other than itself."""
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                threads = (entry / "status").read_text()
            except OSError:
                continue
            if b"forkserver" in command and f"PPid:\t{os.getpid()}" not in threads and is_descendant(int(entry.name)):
                pids.add(int(entry.name))
    return pids


def is_descendant(pid: int) -> bool:
    while pid > 1:
        try:
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if pid == os.getpid():
            return True
    return False


@pytest.mark.lengthy
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", numbered(400))], num_lanes=4)
    expected = Run(of).steps(40)
    before = worker_pids()
    run = Run(of, workers=2)
    steps = run.steps(5)
    victims = worker_pids() - before
    assert len(victims) == 2
    os.kill(victims.pop(), signal.SIGKILL)
    started = time.monotonic()
    with pytest.warns(UserWarning, match="exited unexpectedly.*started again from the last step that was used"):
        steps += run.steps(35)
    assert time.monotonic() - started < 60
    assert steps == expected
    run.close()


@pytest.mark.lengthy
@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_is_an_error(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", numbered(50))], num_lanes=2)
    stream = CorpusStream(
        of,
        Killer(),
        Collator(PAD, "tokens"),
        StepDivision(2, 1),
        num_workers=1,
        timeout_s=60,
    )
    with (
        pytest.warns(UserWarning, match="exited unexpectedly"),
        pytest.raises(DataError, match="a data worker died 4 times at the same step; if it was for memory, lower"),
    ):
        next(stream)


class Killer(Bytes):
    """A tokenizer that ends its process."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(texts)


@pytest.mark.lengthy
def test_what_is_wrong_in_a_worker_is_said_as_in_the_process_itself(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", ["short"] * 9)], cleaning={"min_characters": 100})
    messages = []
    for workers in (0, 1):
        stream = open_stream(of, workers=workers)
        with pytest.raises(DataError) as caught:
            next(stream)
        messages.append(str(caught.value))
        stream.close()
    assert messages[0] == messages[1]
    assert messages[0].endswith("no documents are left to read; the files are empty or all is held out")


# --- units ------------------------------------------------------------------------------------------------------------


def test_units_of_a_small_source_are_many_and_of_a_large_one_not_tiny(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", numbered(2000))
    of = make_settings([path])
    listing = of.sources[0].listing
    assert len(Units(listing, num_lanes=4, words=())) == pytest.approx(4 * 64, rel=0.05)
    assert len(Units(listing, num_lanes=10**6, words=())) <= path.stat().st_size / 64 + 1


def test_a_file_that_has_to_be_read_from_its_start_is_divided_by_record(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl.gz", numbered(50))], num_lanes=4)
    units = Units(of.sources[0].listing, num_lanes=4, words=())
    assert len(units) == 4
    assert {units.unit(lane, 0).part for lane in range(4)} == {0, 1, 2, 3}


def test_lanes_of_one_step_are_independent_objects(tmp_path: Path) -> None:
    of = make_settings([write_texts(tmp_path / "a.jsonl", numbered(80))], num_lanes=2)
    units = make_units(of)
    alone = [Lane(of, 1, Bytes(), units=units).next().sample for _ in range(1)]
    both = [Lane(of, lane, Bytes(), units=units) for lane in (0, 1)]
    both[0].next()
    assert both[1].next().sample == alone[0]
