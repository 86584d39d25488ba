"""Students whose first blocks are their teacher's and stay so, on pipelines: against one rank and formulas in fp64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.dist import run_ranks
from tests.distributed.pipelines import (
    OF_TEACHERS,
    PLAIN,
    Case,
    Layout,
    plain_train,
    train,
    write_pair,
)
from tests.distributed.test_pipeline import CLIPPING, LAYOUTS, compare

FROZEN = "student.freeze_blocks=3"
STATES = "layer_map.pairs=[[1, 1], [2, 2], [3, 3], [4, 7]]"
"""Those of the frozen blocks are lent wherever they are, and compared."""
ACROSS = "layer_map.pairs=[[2, 1], [4, 4]]"
"""The first pair's teacher layer may be that which comes from the stage before."""
EARLY = ("layer_map.pairs=[[2, 2], [4, 3]]", "distill.kl_weight=0")
"""Of the teacher nothing is asked for behind the frozen blocks."""
ALONE = ("distill.method=sft", "distill.method=kd")
FOUR = Layout(4, 1, 1)
"""One stage at least begins within the frozen blocks."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for family in OF_TEACHERS:
        write_pair(folder / family, family)
    return folder


def check(pairs: Path, layout: Layout, cases: list[Case]) -> None:
    whole = [case for case in cases if not {*ALONE} & {*case.changes}]  # the formulas have a teacher and filters
    (plain,) = run_ranks(plain_train, 1, pairs, whole, timeout_s=300)
    (zero,) = run_ranks(train, 1, pairs, PLAIN, cases, timeout_s=300)
    results = run_ranks(train, layout.stages * layout.replicas, pairs, layout, cases, timeout_s=300)
    for index, case in enumerate(cases):
        gradients = [of_rank[index].gradients for of_rank in results]
        still = {name for name in zero[index].weights if name not in zero[index].gradients}
        assert any("embed" in name for name in still)
        assert any("layers.0." in name or "layer.0." in name for name in still)
        assert all(torch.equal(results[0][index].weights[name], zero[index].weights[name]) for name in still)
        of_formulas = plain[whole.index(case)] if case in whole else zero[index]
        if {*EARLY, *ALONE} & {*case.changes}:  # whose reports have a term less
            of_formulas = of_formulas._replace(reports=[])
        compare(case, results[0][index], gradients, of_formulas, zero[index])


@pytest.mark.parametrize(
    ("family", "layout", "changes"),
    [
        ("llama-cut", FOUR, [(STATES,), (ACROSS,), EARLY]),
        ("bert-cut", Layout(2, 2, 0), [(STATES,)]),
    ],
)
def test_frozen_blocks_on_a_pipeline_are_those_of_one_process(
    pairs: Path, family: str, layout: Layout, changes: list[tuple[str, ...]]
) -> None:
    check(pairs, layout, [Case(family, "explicit", "distill", 0.0, (FROZEN, *one)) for one in changes])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", [*LAYOUTS, FOUR, FOUR._replace(zero=0)], ids=lambda one: "x".join(map(str, one)))
@pytest.mark.parametrize("family", OF_TEACHERS)
def test_frozen_blocks_on_every_layout_are_those_of_one_process(pairs: Path, family: str, layout: Layout) -> None:
    cases = [
        Case(family, name, "distill", clipping, (f"student.freeze_blocks={number}",))
        for name in ("uniform", "last", "explicit")
        for number, clipping in ((1, 0.0), (3, CLIPPING))
    ]
    more = [(STATES,), (ACROSS,), EARLY, *((one,) for one in ALONE)]
    check(pairs, layout, cases + [Case(family, "explicit", "distill", 0.0, (FROZEN, *one)) for one in more])
