"""The verdict on what a batch's other rows do to an example."""

from __future__ import annotations

import math

import pytest
import torch

from ted_ds.data.samples import Sample
from ted_ds.models.predictions import DensePredictions
from ted_ds.vetting.composition import judge_composition, mixed_lengths, numbers_of_rows
from tests.task_kinds import TASK_TERMS, labelled


@pytest.mark.parametrize(
    ("precision", "difference", "status"),
    [("fp32", 5e-5, "pass"), ("fp32", 2e-4, "fail"), ("bf16", 0.09, "pass"), ("bf16", 0.11, "fail")],
)
def test_a_difference_is_held_against_the_largest_number(precision: str, difference: float, status: str) -> None:
    for scale in (1.0, 20.0):
        alone = [[0.5 * scale, -scale], [0.1, 0.2]]
        together = [[0.5 * scale, -scale], [0.1, 0.2 + scale * difference]]
        verdict = judge_composition("teacher", alone, together, precision=precision)
        assert (verdict.check, verdict.status) == ("teacher in other batches", status)
    one_is_small = judge_composition("teacher", [[1e-3]], [[1e-3 + difference]], precision=precision)
    assert one_is_small.status == status


def test_the_message_says_what_was_seen_and_what_rounding_would_be() -> None:
    verdict = judge_composition("student", [[1.0], [2.0]], [[1.0], [2.5]], precision="fp32")
    assert verdict.detail == (
        "2 examples alone and side by side differ by 0.25, at most 0.0001 is rounding: each hangs on those beside it"
    )


def test_numbers_that_are_not_finite_are_another_checks_business() -> None:
    assert judge_composition("student", [[math.nan]], [[1.0]], precision="fp32").status == "skip"
    assert judge_composition("student", [[1.0]], [[math.nan]], precision="fp32").status == "fail"


def test_a_batch_is_as_uneven_as_the_data_allow() -> None:
    samples = [Sample([5] * length, 1) for length in (4, 9, 2, 6, 7)]
    assert [len(sample.input_ids) for sample in mixed_lengths(samples)] == [9, 3, 2, 6]
    rows = mixed_lengths([Sample([*range(10)], document_lengths=[2, 1, 7])] * 2)
    assert [(len(sample.input_ids), [*sample.document_lengths]) for sample in rows[:2]] == [
        (10, [2, 1, 7]),
        (4, [2, 1, 1]),
    ]
    assert rows[1].input_ids == [0, 1, 2, 3]
    assert len(mixed_lengths([Sample([5], 0)])) == 4


def test_a_row_is_its_loss_per_label_and_its_logits() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [1.0, 2.0]])
    first, second = numbers_of_rows(
        DensePredictions(logits), labelled(torch.tensor([1, -100])), TASK_TERMS["sequence_classification"]
    )
    assert first == pytest.approx([math.log(4 / 3), 0, math.log(3)])
    assert second == pytest.approx([0, 1, 2])
