"""What weights become of the gradients that are measured: by hand."""

from __future__ import annotations

import math

import pytest

from ted_ds.objectives.gradient_balance import GradientBalance
from tests.tiny import distill_plan


class Weighed:
    """A balance of three terms, and what it had weighed."""

    def __init__(self, balance: str = "gradient_norm") -> None:
        self.asked: list[str | None] = []
        plan = distill_plan(
            method="ted",
            task_weight=1,
            kl_weight=1,
            feature_weight=1,
            balance=balance,
            balance_every_steps=3,
            balance_average=0.75,
            **({"balance_max_factor": 1000} if balance == "gradient_norm" else {}),
        )
        self.balance = GradientBalance(plan, (), weigh=self.asked.append)

    @property
    def factors(self) -> list[float]:
        return [self.balance.factor(name) for name in self.balance.terms]


def test_it_is_due_at_first_and_every_so_many_steps() -> None:
    balance = Weighed().balance
    due = []
    for step in (None, *range(7)):
        balance.begin_step(step)
        due.append(balance.is_due)
    assert due == [True, True, False, False, True, False, False, True]


def test_terms_are_scaled_to_the_first_by_moving_averages() -> None:
    weighed = Weighed()
    assert weighed.factors == [1.0, 1.0, 1.0]
    weighed.balance.begin_step(0)
    weighed.balance.take({"task_weight": 2.0, "kl_weight": 0.5, "feature_weight": 8.0})
    assert weighed.factors == [1.0, 4.0, 0.25]
    assert not weighed.balance.is_due  # not a second time in one step
    weighed.balance.take({"task_weight": 4.0, "kl_weight": 0.5, "feature_weight": 4.0})
    assert weighed.factors == [1.0, 5.0, 2.5 / 7]
    assert weighed.balance.reported == {
        "train/gradient_norm/task": 2.5,
        "train/gradient_norm/kl": 0.5,
        "train/gradient_norm/feature": 7.0,
    }
    assert weighed.asked == [None, None]


def test_a_term_is_weighed_alone_and_then_as_before() -> None:
    weighed = Weighed()
    with pytest.raises(ZeroDivisionError), weighed.balance.alone("kl_weight"):
        _ = 1 / 0
    assert weighed.asked == ["kl_weight", None]


def test_what_says_nothing_of_a_size_is_left_out() -> None:
    weighed = Weighed()
    weighed.balance.take({"task_weight": 0.0, "kl_weight": 0.5, "feature_weight": 8.0})
    assert weighed.factors == [1.0, 1.0, 1.0]  # there is nothing to scale to
    weighed.balance.take({"task_weight": 1.0, "kl_weight": math.nan, "feature_weight": math.inf})
    assert weighed.factors == [1.0, 2.0, 0.125]


def test_a_gradient_that_is_all_but_gone_is_not_blown_up() -> None:
    weighed = Weighed()
    weighed.balance.take({"task_weight": 1.0, "kl_weight": 1e-9, "feature_weight": 1e3})
    assert weighed.factors == [1.0, 1000.0, 1e-3]


def test_what_is_only_measured_changes_no_weight() -> None:
    weighed = Weighed("measure")
    weighed.balance.take({"task_weight": 2.0, "kl_weight": 0.5, "feature_weight": 8.0})
    assert weighed.factors == [1.0, 1.0, 1.0]
    assert weighed.balance.reported["train/gradient_norm/feature"] == 8.0


def test_a_checkpoint_holds_all_of_it() -> None:
    first, second = Weighed(), Weighed()
    first.balance.take({"task_weight": 0.1, "kl_weight": 1 / 3, "feature_weight": 7.0})
    second.balance.load(first.balance.state())
    assert second.asked == [None]
    for one in (first, second):
        one.balance.take({"task_weight": 0.7, "kl_weight": 0.2, "feature_weight": 0.3})
    assert first.factors == second.factors
