"""Engines on a GPU against plain PyTorch in fp64: one rank, and two that share the GPU and sum up by gloo.

And steps that are computed twice there: sound ones are the same bits, and one flipped bit is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.runtime.world import World
from tests.device import DEVICE
from tests.dist import run_ranks
from tests.distributed.test_replay import HURT, flipped, trained
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


def replayed(world: World, folder: Path, stage: int, precision: str) -> tuple[bool, list[str]]:
    """Whether steps that are computed twice are the same steps, and what is said of a bit that flips in one."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # of DeepSpeed's buckets, which are a gigabyte
    assert world.device.type == DEVICE.type
    (weights, reports), (others, of_others) = (trained(world, folder, stage, precision, every) for every in (None, 1))
    is_same = reports == of_others and all(torch.equal(one, others[name]) for name, one in weights.items())
    return is_same, [flipped(world, folder, stage, precision, in_repetition) for in_repetition in (False, True)]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "bf16"), (3, "bf16")])
def test_steps_are_computed_twice_and_a_flipped_bit_is_noticed(tmp_path: Path, stage: int, precision: str) -> None:
    write_models(tmp_path, "causal_lm")
    ((is_same, said),) = run_ranks(replayed, 1, tmp_path, stage, precision)
    assert is_same
    for text in said:
        assert text.startswith("step 2: computed a second time, gradients are not the same bits (rank 0 on "), text
        assert f": 1 of 25 gradients, as of tapped.model.{HURT}; up to step 1 they were)" in text, text
