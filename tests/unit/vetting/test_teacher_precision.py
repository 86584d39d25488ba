"""Which way to have a teacher is taken, of those that were measured."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ted_ds.config.load import load_recipe
from ted_ds.errors import CheckpointError
from ted_ds.output.run_folder import Run
from ted_ds.vetting.precision import Way
from ted_ds.vetting.teacher_precision import Measured, choose, find_precision, in_words, ways_beside
from tests.tiny import recipe_dict, write_recipe

OWN = Way("fp32", "replica")


def measured(**of: tuple[float, float]) -> list[Measured]:
    hosts = {"bf16": "replica", "int8": "int8"}
    return [Measured("bf16", hosts[name], *one) for name, one in of.items()]


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({"bf16": (0.002, 0.5), "int8": (0.006, 0.4)}, Way("bf16", "int8")),
        ({"bf16": (0.002, 0.5), "int8": (0.011, 0.4)}, Way("bf16", "replica")),
        ({"bf16": (0.002, 0.5), "int8": (0.006, 0.7)}, Way("bf16", "replica")),
        ({"bf16": (0.01, 0.95)}, Way("bf16", "replica")),
        ({"bf16": (0.002, 0.96), "int8": (0.006, 1.3)}, OWN),
        ({"bf16": (0.02, 0.3)}, OWN),
        ({"bf16": (math.nan, 0.3), "int8": (math.inf, 0.3)}, OWN),
        ({}, OWN),
    ],
)
def test_the_fastest_way_that_is_near_enough_is_taken(found: dict[str, tuple[float, float]], taken: Way) -> None:
    assert choose(measured(**found), OWN, 0.01) == taken


@pytest.mark.parametrize(
    ("precision", "there", "ways"),
    [
        ("fp32", (True, True), [Way("bf16", "replica"), Way("bf16", "int8")]),
        ("fp32", (False, True), [Way("fp32", "int8")]),
        ("fp32", (True, False), [Way("bf16", "replica")]),
        ("bf16", (True, True), [Way("bf16", "int8")]),
        ("fp16", (True, True), [Way("fp16", "int8")]),
        ("bf16", (True, False), []),
    ],
)
def test_ways_have_fewer_bits(precision: str, there: tuple[bool, bool], ways: list[Way]) -> None:
    assert ways_beside(precision, has_bf16=there[0], has_int8=there[1]) == ways


def test_all_that_was_measured_is_told() -> None:
    assert in_words(measured(bf16=(0.00123, 0.4), int8=(0.0057, 0.34)), 0.01) == (
        "bf16 is off by a KL of 0.0012 and takes 0.40 of the time; int8 (bf16) is off by a KL of 0.0057 and takes "
        "0.34 of the time; at most 0.01 nats a prediction, and 0.95 of the time"
    )
    assert in_words([], 0.01).startswith("there is no other way to have it")


@pytest.mark.parametrize("kept", [{"precision": "int4", "host": "replica"}, {"precision": "bf16"}, ["bf16"]])
def test_what_was_kept_and_is_damaged_is_refused_by_all_ranks_alike(tmp_path: Any, kept: Any) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(tmp_path, method="kd"))
    recipe = load_recipe(path, ["teacher.precision=auto"])
    given: Any = SimpleNamespace(recipe=recipe, run=Run("a1", teacher_precision=kept))
    with pytest.raises(CheckpointError, match=r"run.json: teacher_precision: .* names no precision and host") as caught:
        find_precision(given, teacher_sha256=lambda: "0", run_is_old=True, may_measure=True)
    assert caught.value.agreed
