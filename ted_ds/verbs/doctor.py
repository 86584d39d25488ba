"""The verb ``doctor``: a recipe's models, data and one step, looked at."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ted_ds.phases.chain import phase_folder
from ted_ds.runtime.preemption import StopRequests
from ted_ds.verbs.prepare import greet, hearing, prepare
from ted_ds.vetting.doctor import Doctor


def examine(recipe_path: str, overrides: Sequence[str]) -> bool:
    """Look at the pair of models, the data and one step of a recipe, and print a verdict on each.

    Returns:
        Whether nothing failed; the same on every rank.

    Raises:
        TedError: There is nothing to look at; the same on every rank.
        RankLostError: On the ranks that are left, when one of them died or hangs.
    """
    stops = StopRequests()
    with hearing(stops):
        assembly, inputs = prepare(recipe_path, overrides, contracts_hold=False, in_pipeline=False, stops=stops)
        greet(assembly)
        return Doctor(assembly, inputs.folders, functools.partial(phase_folder, inputs)).examine()
