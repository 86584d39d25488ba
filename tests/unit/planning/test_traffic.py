"""What steps send and compute, by arithmetic; :mod:`tests.distributed.test_communication` counts it at engines."""

from __future__ import annotations

import pytest

from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.traffic import REUSED, Link, Traffic, phase_traffic, sent_by_engine
from tests.task_kinds import plan_recipe
from tests.tiny import ROOT, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), kind="sequence_classification")


def sent(run, *overrides):
    recipe, plan = plan_recipe(
        run, [*overrides, f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / 'zero2.json'}"], num_ranks=2
    )
    found = phase_traffic(recipe, plan, deepspeed_json_of(recipe, plan), num_ranks=2, host="replica")
    return {one.phase: one.sent for one in found}["distill"]


def test_a_budget_of_tokens_sends_as_often_as_microbatches_of_its_longest_rows(run):
    """Under ZeRO-2 gradients travel with every microbatch."""
    by_rows = {size: sent(run, "distill.global_batch_size=16", f"distill.micro_batch_size={size}") for size in (1, 4)}
    assert by_rows[1] > 2 * by_rows[4]
    for size, expected in by_rows.items():
        budget = f"distill.micro_batch_tokens={size * 16}"
        changes = ["task.max_length=16", "distill.global_batch_size=16", "distill.micro_batch_size=null", budget]
        assert sent(run, *changes) == expected


def test_a_step_takes_its_operations_by_their_rate_and_its_bytes_by_theirs():
    step = Traffic("distill", sent=2.5e9, operations=8e12)
    assert step.seconds(Link(gbit=10, tflops=4)) == (2.0, 2.0)
    assert step.seconds(Link(gbit=100, tflops=40)) == (0.2, 0.2)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 3), (2, 2 * 3 + 1), (3, 3 * 2)])
def test_a_rank_sends_its_part_of_gradients_and_weights_so_often(stage, times):
    """Of three microbatches a step; what engines really send is counted in tests/distributed/test_communication.py."""
    settings = {"stage": stage, "item_bytes": 2, "num_ranks": 4, "num_micro": 3}
    assert sent_by_engine(1000, **settings) == times * 1000 * 2 * 3 / 4
    larger = times + (3 if stage == 3 else 0)  # gathered once more
    assert sent_by_engine(REUSED + 1, **settings) == larger * (REUSED + 1) * 2 * 3 / 4
