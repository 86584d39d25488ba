"""The verdict on a teacher in fewer bits."""

from __future__ import annotations

import math

import pytest

from ted_ds.vetting.precision import Found, Way, judge_precision

FULL, BF16, INT8 = (
    Way(precision, host) for precision, host in (("fp32", "replica"), ("bf16", "replica"), ("bf16", "int8"))
)


def judge(own, **biases):
    ways = {"bf16": BF16, "int8": INT8}
    found = {ways[name]: Found(bias, 0.5) for name, bias in biases.items()}
    return judge_precision(found, own, loss=2.0, in_full=1.0, distance="loss/kl")


def test_each_way_is_told_beside_fp32():
    verdict = judge(INT8, int8=0.01, bf16=0.0004)
    assert verdict.status == "pass"
    assert verdict.detail == (
        "beside fp32, by loss/kl (its task loss: 2): int8 (bf16) is off by 0.01 and takes 0.50 of the time; bf16 is "
        "off by 0.0004 and takes 0.50 of the time"
    )


@pytest.mark.parametrize("bias", [0.11, math.nan, math.inf])
def test_a_way_that_is_far_off_is_warned_of_where_it_is_the_runs(bias):
    verdict = judge(INT8, int8=bias, bf16=0.0004)
    assert verdict.status == "warn"
    assert verdict.detail.endswith("More than 5% of its loss: take more bits")
    assert judge(BF16, int8=bias, bf16=0.0004).status == "pass"
    assert judge(FULL, bf16=bias).status == "pass"
