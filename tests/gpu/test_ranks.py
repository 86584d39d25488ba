"""Engines on a GPU against plain PyTorch in fp64: one rank, and two that share the GPU and sum up by gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ted_ds.runtime.world import World
from tests.device import DEVICE
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import CASES, assert_as_plain, train_plainly, write_models
from tests.distributed.training import run_stage

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
CLIPPING = 0.05


def run_stages(world: World, folders: dict[tuple[str, str], Path], stages: list[int]) -> dict[Any, Any]:
    """What each stage of ZeRO comes to in each case, one engine after the other."""
    found = {}
    for (what, kind), folder in folders.items():
        for stage in stages:
            result = run_stage(world, folder, what, kind, stage, CLIPPING, stage == 3 and what != "finetune", "fp32")
            result["weights"] = {name: weight.cpu() for name, weight in result["weights"].items()}
            found[what, kind, stage] = result
    assert world.device.type == DEVICE.type
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Folders with models, and what plain steps make of them."""
    made = {}
    for what, kind in CASES:
        folder = tmp_path_factory.mktemp(f"{what}_{kind}")
        write_models(folder, kind)
        made[what, kind] = (folder, *train_plainly(folder, what, kind, CLIPPING))
    return made


# in groups, so that what gloo cannot do for one with a GPU's tensors does not hide the others
@pytest.mark.parametrize(("num_ranks", "stages"), [(1, [0, 1, 2, 3]), (2, [0]), (2, [1, 2]), (2, [3])])
def test_every_stage_of_zero_takes_the_steps_of_plain_pytorch(cases: Any, num_ranks: int, stages: list[int]) -> None:
    folders = {case: folder for case, (folder, *_) in cases.items()}
    of_ranks = run_ranks(run_stages, num_ranks, folders, stages)
    for (what, kind, stage), first in of_ranks[0].items():
        results = [first, *(one[what, kind, stage] for one in of_ranks[1:])]
        _, weights, reports = cases[what, kind]
        assert_as_plain(results, weights, reports)
