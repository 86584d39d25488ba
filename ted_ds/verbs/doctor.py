"""The verb ``doctor``: a recipe's models, data and one step, looked at; or that step over and over."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ted_ds.phases.chain import phase_folder
from ted_ds.runtime.preemption import StopNow, StopRequests
from ted_ds.verbs.prepare import greet, hearing, prepare
from ted_ds.vetting.doctor import Doctor

REPEATABLE = "deterministic=true"
"""Without it a sound GPU, too, may come to other bits."""


@contextmanager
def _doctor(recipe_path: str, overrides: Sequence[str]) -> Iterator[Doctor]:
    stops = StopRequests()
    with hearing(stops):
        assembly, inputs = prepare(recipe_path, overrides, contracts_hold=False, in_pipeline=False, stops=stops)
        greet(assembly)
        try:
            yield Doctor(assembly, inputs.folders, functools.partial(phase_folder, inputs))
        except StopNow:
            raise assembly.stopped("while a step was repeated", "Up to then all ranks repeated themselves") from None


def examine(recipe_path: str, overrides: Sequence[str]) -> bool:
    """Look at the pair of models, the data and one step of a recipe, and print a verdict on each.

    Returns:
        Whether nothing failed; the same on every rank.

    Raises:
        TedError: There is nothing to look at; the same on every rank.
        RankLostError: On the ranks that are left, when one of them died or hangs.
    """
    with _doctor(recipe_path, overrides) as doctor:
        return doctor.examine()


def repeat(recipe_path: str, overrides: Sequence[str], times: int) -> None:
    """Compute the gradients of a recipe's first step of Stage II so often again, on every rank.

    Raises:
        DeviceFaultError: A rank did not come to the same bits; on every rank.
        TedError: There is nothing to repeat; the same on every rank.
        RankLostError: On the ranks that are left, when one of them died or hangs.
    """
    with _doctor(recipe_path, [*overrides, REPEATABLE]) as doctor:
        doctor.repeat(times)
