"""All ranks go on, or all stop with one message; nobody hangs."""

from __future__ import annotations

import time

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ted_ds.errors import CheckpointError, ConfigError, DataError, TedError, TopologyError
from tests.dist import run_ranks


def fail_on(world, failing_ranks, kind, text):
    """Raise on some ranks inside ``together``; report what each rank saw."""
    started = time.monotonic()
    try:
        with world.together():
            if world.rank in failing_ranks:
                raise kind(text.format(rank=world.rank))
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "agreed", None), time.monotonic() - started
    return None


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_one_ranks_mistake_is_raised_on_all_with_its_name(kind):
    for seen in run_ranks(fail_on, 3, [1], kind, "weights.bin: missing"):
        assert seen[:3] == (kind.__name__, "rank 1: weights.bin: missing", True)
        assert seen[3] < 30  # the limit of a collective is 60


def test_a_mistake_all_ranks_share_is_told_once():
    for seen in run_ranks(fail_on, 2, [0, 1], ConfigError, "recipe.yaml: wrong"):
        assert seen[:3] == ("ConfigError", "recipe.yaml: wrong", True)


def test_different_mistakes_are_all_told():
    for seen in run_ranks(fail_on, 2, [0, 1], ConfigError, "file {rank}"):
        assert seen[1] == "rank 0: file 0\nrank 1: file 1"


def refused_precisions(world):
    found = []
    for precision in ("fp32", "bf16", "fp16"):
        try:
            world.check_precision(precision)
        except TopologyError as error:
            found.append(str(error))
    return found


def test_a_precision_is_refused_where_the_device_has_none_such():
    device = get_accelerator()
    can = {"bf16": device.is_bf16_supported(), "fp16": device.is_fp16_supported()}
    expected = [f"precision: {one} is not supported by this cpu; use another one" for one in can if not can[one]]
    assert run_ranks(refused_precisions, 1) == [expected]


def square_of(world, failing_ranks):
    def work():
        if world.rank in failing_ranks:
            raise DataError("no number")
        return world.rank**2

    try:
        return world.agree(work)
    except TedError as error:
        return str(error), error.agreed


def test_ranks_that_agree_keep_each_its_own_result_or_none_has_one():
    assert run_ranks(square_of, 3, []) == [0, 1, 4]
    assert run_ranks(square_of, 3, [2]) == [("rank 2: no number", True)] * 3


def test_a_defect_on_one_rank_stops_the_others_too():
    for name, text, *_ in run_ranks(fail_on, 2, [1], ZeroDivisionError, "oops"):
        assert name == "RuntimeError"
        assert "ranks [1] failed: oops" in text


def work_on_main(world, fails):
    def work():
        if fails:
            raise CheckpointError("disk full")
        return {"rank": world.rank}

    try:
        return world.on_main(work)
    except TedError as error:
        return str(error)


def test_the_main_ranks_result_or_failure_is_everybodys():
    assert run_ranks(work_on_main, 2, False) == [{"rank": 0}, {"rank": 0}]
    assert run_ranks(work_on_main, 2, True) == ["rank 0: disk full"] * 2


def sums(world):
    return world.sum(torch.tensor([1.0, float(world.rank)])).tolist(), world.gather(world.rank)


def test_sum_and_gather_see_every_rank():
    assert run_ranks(sums, 3) == [([3.0, 3.0], [0, 1, 2])] * 3
