"""What Stage II needs of a teacher, by its method and weights: one answer, for planning as for training."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ted_ds.config.needs import NOTHING, Needs
from ted_ds.numerics.filters import FilterBank, IdentityFilters
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.objectives.learn_filters import FilterObjective
from tests.parity.test_task_terms import batch_of
from tests.task_kinds import TASK_TERMS
from tests.tiny import distill_plan

PREDICTIONS, STATES = Needs(predictions=True), Needs(states=True)
FILTERED = Needs(states=True, filters=True)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"method": "sft"}, NOTHING),
        ({"method": "sft", "kl_weight": 0.0}, NOTHING),
        ({"method": "kd"}, PREDICTIONS),
        ({"method": "kd", "divergence": "tv"}, PREDICTIONS),
        ({"method": "lwd"}, PREDICTIONS | STATES),
        ({"method": "lwd", "kl_weight": 0.0}, STATES),
        ({}, PREDICTIONS | FILTERED),
        ({"kl_weight": 0.0}, FILTERED),
        ({"kl_weight": 1e-9, "task_weight": 0.0}, PREDICTIONS | FILTERED),
    ],
)
def test_a_method_needs_what_its_terms_need(settings: dict[str, Any], needs: Needs) -> None:
    plan = distill_plan(**settings)
    assert plan.needs == needs
    assert plan.needs.teacher == (plan.method != "sft")
    if plan.method == "sft":
        return
    filters = {"kd": None, "lwd": IdentityFilters([1, 2]), "ted": FilterBank([1, 2], 4, 4)}[plan.method]
    layers = (1, 2) if filters is not None else ()
    objective = DistillObjective(
        TASK_TERMS["sequence_classification"],
        plan,
        teacher=cast(Any, None),
        teacher_filters=filters,
        student_layers=layers,
    )
    assert objective.needs == needs
    batch = batch_of("sequence_classification")
    counts = {"loss/task": 3, "loss/kl_teacher_student": 3, **{f"loss/feature_mse/layer_0{i}": 13 for i in layers}}
    if plan.divergence == "tv":
        counts["loss/tv_teacher_student"] = counts.pop("loss/kl_teacher_student")
    if not needs.predictions:
        del counts["loss/kl_teacher_student"]
    assert {name: count.item() for name, count in objective.counts(batch).items()} == counts
    assert objective.weights.keys() == counts.keys()


def test_a_task_alone_needs_no_teacher() -> None:
    task = TASK_TERMS["regression"]
    for objective in (FinetuneObjective(task), FilterObjective(task, cast(Any, None), [1, 2])):
        assert objective.needs == NOTHING
        assert not objective.needs.teacher
        labels = {count.item() for count in objective.counts(batch_of("regression")).values()}
        assert labels == {9}
