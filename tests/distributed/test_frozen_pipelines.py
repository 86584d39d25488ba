"""Students whose first blocks are their teacher's and stay so, on pipelines: against one rank and formulas in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ted_ds.planning.stage_memory import sent_bytes
from ted_ds.runtime.cargo import Waybill
from tests.dist import run_ranks
from tests.distributed.pipelines import (
    OF_TEACHERS,
    PLAIN,
    Case,
    Layout,
    models_of,
    open_case,
    open_engine,
    plain_train,
    prepare,
    train,
    write_pair,
)
from tests.distributed.test_pipeline import CLIPPING, LAYOUTS, compare

FROZEN = "student.freeze_blocks=3"
STATES = "layer_map.pairs=[[1, 1], [2, 2], [3, 3], [4, 7]]"
"""Those of the frozen blocks are lent wherever they are, and compared."""
ACROSS = "layer_map.pairs=[[1, 1], [2, 1], [3, 3], [4, 4]]"
"""The second pair's teacher layer is that which comes from the stage before, where that ends behind block 1."""
EARLY = ("layer_map.pairs=[[2, 2], [4, 3]]", "distill.kl_weight=0")
"""Of the teacher nothing is asked for behind the frozen blocks."""
ALONE = ("distill.method=sft", "distill.method=kd", "distill.method=lwd")
FIVE = Layout(5, 1, 1)
"""A stage for each block of the student, and one for the heads."""
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


class Crossing(NamedTuple):
    """What one rank saw of a microbatch."""

    begins: tuple[int, int]
    """Of the student and the teacher here, which block is the first that runs."""
    sent: int | None
    """Bytes; None on the last stage."""
    arrived: float | None
    """The largest number in the gradient of the student's state that came; None on the first stage."""
    by_plan: list[int]
    """Bytes over each border."""


def what_crosses(_world: Any, folder: Path, layout: Layout, case: Case) -> Crossing:
    """One step of a case, looked at."""
    build = open_case(folder, case, layout)
    prepared = prepare(build, models_of(folder, case), case)
    sent: list[int] = []
    arrived: list[torch.Tensor] = []
    pass_on, unload = Waybill.pass_on, Waybill.unload

    def counted(self: Waybill, cargo: Any, *rest: Any) -> Any:
        found = pass_on(self, cargo, *rest)
        sent.append(sum(one.numel() * one.element_size() for one in found))
        return found

    def watched(self: Waybill, cargo: Any, dtype: torch.dtype) -> Any:
        cargo[0].retain_grad()
        arrived.append(cargo[0])
        return unload(self, cargo, dtype)

    Waybill.pass_on, Waybill.unload = counted, watched  # type: ignore[method-assign] - this process is this rank's
    with open_engine(build, case, prepared) as engine:
        first: list[torch.Tensor | None] = []
        optimizer = engine.engine.optimizer
        plain_step = optimizer.step

        def step(*arguments: Any, **more: Any) -> Any:
            first.extend(one.grad for one in arrived)
            return plain_step(*arguments, **more)

        optimizer.step = step
        engine.step(build.training_batches(prepared.plan, num_workers=0), prepared.objective)
    gradient = None if not arrived or first[0] is None else float(first[0][:-1].abs().max())
    shares = prepared.passing["trained"].share, prepared.passing["frozen"]["teacher"].tapped.share
    by_plan = [sent_bytes(build.recipe, build.plan, "distill", border) for border in range(layout.stages - 1)]
    return Crossing((shares[0].start, shares[1].start), sent[0] if sent else None, gradient, by_plan)


def test_one_state_crosses_a_border_within_frozen_blocks_and_no_gradient_comes_back(pairs: Path) -> None:
    case = Case("llama-cut", "explicit", "distill", 0.0, (FROZEN, ACROSS, "distill.method=lwd"))
    found = run_ranks(what_crosses, FIVE.stages, pairs, FIVE, case)
    assert [one.begins for one in found][:3] == [(0, 1), (1, 2), (2, 3)]  # the teacher, behind what is lent to it here
    sent = [one.sent for one in found if one.sent is not None]
    by_plan = found[0].by_plan
    assert sent[0] == sent[1] < sent[2] == sent[3]
    assert sent[2] - sent[1] == by_plan[2] - by_plan[1]  # the teacher's state
    assert [one.arrived for one in found[1:4]] == [0.0] * 3
    assert (found[4].arrived or 0.0) > 0


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


@pytest.mark.slow
def test_a_stage_for_each_block_trains_like_one_process(pairs: Path) -> None:
    changes = [(FROZEN, one, "distill.method=lwd") for one in (STATES, ACROSS)]
    check(pairs, FIVE, [Case("llama-cut", "explicit", "distill", 0.0, one) for one in changes])
