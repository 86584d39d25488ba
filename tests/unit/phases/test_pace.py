"""What a report says of time, speed and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted_ds.phases.pace import OfRank, Pace
from ted_ds.planning.operations import operations_per_step
from ted_ds.planning.phase import DISTILL
from tests.task_kinds import plan_recipe
from tests.tiny import write_run

RANKS = [
    OfRank({"steps": 2.0, "tokens": 200.0, "forward": 1.0, "communication": 1.0}, {"host": 1.0, "device": 3.0}),
    OfRank({"steps": 2.0, "tokens": 200.0, "forward": 1.5, "communication": 0.5}, {"host": 2.0, "device": 2.5}),
]


def test_parts_sum_up_to_a_step_and_peaks_are_those_of_the_worst_rank() -> None:
    assert Pace(None, 100.0).metrics(RANKS) == {
        "perf/peak_device_gib": 3.0,
        "perf/peak_host_gib": 2.0,
        "perf/step_s": 1.0,
        "perf/step_s/forward": 0.625,
        "perf/step_s/communication": 0.375,
    }


def test_speed_is_of_what_the_plan_counts_and_its_share_of_what_was_declared() -> None:
    of_token = 4e12
    found = Pace(of_token, None).metrics(RANKS)
    assert found["perf/tflops_per_rank"] == pytest.approx(4 * 100 / 1.0 / 2)
    assert "perf/mfu" not in found
    assert Pace(of_token, 500.0).metrics(RANKS)["perf/mfu"] == pytest.approx(0.4)


def test_without_a_timed_step_there_is_memory_alone() -> None:
    nothing = OfRank({"steps": 0.0, "tokens": 0.0}, {"host": 1.0})
    assert Pace(1.0, 1.0).metrics([nothing]) == {"perf/peak_host_gib": 1.0}


def test_operations_are_those_of_the_plan_and_none_where_a_cache_teaches(tmp_path: Path) -> None:
    recipe, plan = plan_recipe(str(write_run(tmp_path)), [])
    of_step = operations_per_step(recipe, plan, DISTILL)
    tokens = recipe.distill.global_batch_size * recipe.task.sequence_length
    assert of_step is not None
    assert Pace.of(recipe, plan, DISTILL).operations == pytest.approx(of_step / tokens)
    cached = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"cache": object()})})
    assert Pace.of(cached, plan, DISTILL).operations is None
