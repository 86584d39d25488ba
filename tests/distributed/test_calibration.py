"""Calibration data: the first samples of the training data, whatever the ranks and microbatches."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from ted_ds.assembly.calibration import Calibration, open_calibration
from ted_ds.data.step_division import StepDivision
from ted_ds.errors import DataError
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import prepare
from tests.dist import run_ranks
from tests.tiny import write_corpus, write_run

KINDS = ("causal_lm", "masked_lm", "chat", "sequence_classification", "multiple_choice", "seq2seq")
TOKENS, HELDOUT = 300, 60
CASES = {1: [3], 2: [2, 5]}
"""Sizes of microbatches, by the number of ranks."""


def opened(recipe: Path, **settings: Any) -> tuple[Any, Calibration]:
    given = {"tokens": TOKENS, "heldout_tokens": HELDOUT, **settings}
    overrides = ["distill.micro_batch_size=1", *(f"student.calibration.{key}={value}" for key, value in given.items())]
    build, _ = prepare(str(recipe), overrides, contracts_hold=True, stops=StopRequests())
    return build, open_calibration(build)


def tokens_of_parts(calibration: Calibration) -> dict[str, list[tuple[int, ...]]]:
    """The tokens of this rank's rows, by their part."""
    found: dict[str, list[tuple[int, ...]]] = {"fitted": [], "heldout": []}
    for one in calibration.batches:
        for part, rows in found.items():
            for row in getattr(one, part).nonzero().flatten().tolist():
                rows.append(tuple(one.batch.input_ids[row][one.batch.kept_tokens[row]].tolist()))
    return found


def shares(_world: Any, recipes: list[Path], sizes: list[int]) -> list[Any]:
    found = []
    for recipe, size in itertools.product(recipes, sizes):
        calibration = opened(recipe, micro_batch_size=size)[1]
        counts = (calibration.num_tokens, calibration.num_heldout_tokens)
        found.append((len(calibration.batches), counts, tokens_of_parts(calibration)))
    return found


def beginning(_world: Any, recipes: list[Path]) -> list[list[tuple[int, ...]]]:
    """The rows of the training stream, in order, as one rank reads them one by one."""
    found = []
    for recipe in recipes:
        build, calibration = opened(recipe)
        stream = build.data.stream(build.collate, StepDivision(64, 1), seed=0, num_workers=0, timeout_s=9.0)
        rows = [
            tuple(ids[kept].tolist())
            for batch in itertools.chain(next(stream), next(stream))
            for ids, kept in zip(batch.input_ids, batch.kept_tokens, strict=True)
        ]
        parts = tokens_of_parts(calibration)
        assert rows[: len(parts["fitted"])] == parts["fitted"], build.kind
        behind = rows[len(parts["fitted"]) :]
        assert behind[: len(parts["heldout"])] == parts["heldout"], build.kind
        found.append(parts)
    return found


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    found = [write_run(folder / kind, kind=kind, method="kd") for kind in KINDS]
    write_corpus(folder / KINDS[0] / "train.jsonl", 400)
    return found


def test_it_is_the_beginning_of_the_training_data_on_any_ranks_in_any_microbatches(recipes):
    (expected,) = run_ranks(beginning, 1, recipes)
    for parts in expected:
        of_parts = {part: [sum(map(len, rows)), *map(len, rows)] for part, rows in parts.items()}
        for part, least in (("fitted", TOKENS), ("heldout", HELDOUT)):
            total, *_, last = of_parts[part]
            assert total >= least > total - last - 16, "as many samples as are needed, a question's two rows at once"
    assert_shares(recipes, expected, CASES)


@pytest.mark.slow
def test_four_ranks_have_it_too(recipes):
    (expected,) = run_ranks(beginning, 1, recipes)
    assert_shares(recipes, expected, {4: [4]})


def assert_shares(recipes, expected, cases):
    for num_ranks, sizes in cases.items():
        of_ranks = run_ranks(shares, num_ranks, recipes, sizes)
        for (index, _), *found in zip(itertools.product(range(len(recipes)), sizes), *of_ranks, strict=True):
            assert len({number for number, *_ in found}) == 1, "a sharded model must run as often on every rank"
            for part, rows in expected[index].items():
                together = [row for *_, parts in found for row in parts[part]]
                assert sorted(together) == sorted(rows), (KINDS[index], num_ranks, part)
            totals = tuple(sum(map(len, rows)) for rows in expected[index].values())
            assert {counts for _, counts, _ in found} == {totals}


def too_few(_world: Any, recipes: list[Path]) -> list[str]:
    found = []
    for recipe in recipes:
        with pytest.raises(DataError) as error:
            opened(recipe, tokens=100_000)
        found.append(str(error.value))
    return found


def test_too_little_data_is_said(recipes):
    labelled = recipes[KINDS.index("sequence_classification")]
    found = [message for (message,) in run_ranks(too_few, 2, [labelled])]
    assert len({*found}) == 1
    wanted = (
        r"student.calibration: tokens: 100,000 and heldout_tokens: 60 are more than the (\d{3}) that data.train has"
    )
    assert re.match(wanted, found[0])
    assert [text.count("WARN") for text in run_ranks(said_of, 2, recipes[0], TOKENS)] == [0, 0]
    first, second = run_ranks(said_of, 2, recipes[0], 20_000)
    assert first.count("WARN student.calibration: train: read more than once") == 1
    assert not second


def test_where_nothing_is_said_small_data_is_taken_whole(recipes):
    labelled = recipes[KINDS.index("sequence_classification")]
    (alone,), *others = (run_ranks(whole, num_ranks, labelled) for num_ranks in (1, 2))
    fitted, heldout = alone
    assert 0 < len(heldout) < len(fitted)
    num_fitted, num_heldout = (sum(map(len, part)) for part in alone)
    assert num_fitted / (num_fitted + num_heldout) == pytest.approx(8 / 9, abs=0.02)
    for of_ranks in others:
        assert [sorted(a + b) for a, b in zip(*of_ranks, strict=True)] == [sorted(part) for part in alone]


def whole(_world: Any, recipe: Path) -> tuple[list[Any], list[Any]]:
    build, _ = prepare(str(recipe), ["distill.micro_batch_size=1"], contracts_hold=True, stops=StopRequests())
    parts = tokens_of_parts(open_calibration(build))
    return parts["fitted"], parts["heldout"]


def said_of(_world: Any, recipe: Path, tokens: int) -> str:
    """What is printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        opened(recipe, tokens=tokens)
    return said.getvalue()
