"""Which of several scores is the best."""

from __future__ import annotations

import math

import pytest

from ted_ds.phases.training import beats


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_better_score_beats_and_an_equal_one_does_not(higher_is_better: bool) -> None:
    better, worse = (0.9, 0.8) if higher_is_better else (0.8, 0.9)
    assert beats(better, worse, higher_is_better=higher_is_better)
    assert not beats(worse, better, higher_is_better=higher_is_better)
    assert not beats(better, better, higher_is_better=higher_is_better)
    assert beats(-1.0, None, higher_is_better=higher_is_better)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_beats_nothing(value: float) -> None:
    for best in (None, 0.5):
        assert not any(beats(value, best, higher_is_better=higher) for higher in (True, False))
