"""What the runs of a study score: outcomes of all arms on the same examples, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ted_ds.config.data import TEST
from ted_ds.errors import CheckpointError
from ted_ds.numerics.metric_sums import FORMS, Form
from ted_ds.numerics.paired_draws import (
    Difference,
    Draws,
    Share,
    difference,
    draw,
    draws_of_examples,
    holm,
    share_of_gap,
)
from ted_ds.output.results import STUDENT, TEACHER, outcomes_file
from ted_ds.planning.phase import EVALUATE
from ted_ds.planning.study_plan import StudyPlan
from ted_ds.tasks.outcomes import ONE
from ted_ds.verbs.study.runs import Runs, StudyRun

CONFIDENCE = 0.95
HELDOUT = "held-out"


@dataclass(frozen=True)
class ArmScores:
    """An arm on one part of the data."""

    by_seed: Mapping[int, float]
    mean: float
    difference: Difference | None
    """To the baseline; None for that itself, and where it is not complete."""
    holm_p: float | None
    """Of the difference, after Holm's correction over arms."""
    gap_closed: Share | None
    """Between the baseline and the teacher; None without a teacher's score, or such a gap."""


@dataclass(frozen=True)
class PartScores:
    """All complete arms on one part of the data."""

    part: str
    decides: bool
    """Whether verdicts are about it: the test data, or without any the held-out data."""
    metric: str
    higher_is_better: bool
    num_examples: int
    teacher: float | None
    arms: Mapping[str, ArmScores]


def parts_of(plan: StudyPlan) -> list[str | None]:
    """The parts that are compared, the one that decides first; None for held-out data."""
    beside = [*plan.recipe.data.beside]
    return [TEST, None, *(one for one in beside if one != TEST)] if TEST in beside else [None, *beside]


def compare(plan: StudyPlan, runs: Runs, complete: Mapping[str, Sequence[StudyRun]]) -> list[PartScores]:
    """Compare the arms that are complete, on every part.

    Args:
        plan: The study.
        runs: Its runs.
        complete: Of each arm all whose seeds are complete, the runs, seed by seed.

    Raises:
        CheckpointError: Outcomes are missing or damaged, or not of the same examples.
    """
    if not complete:
        return []
    parts = enumerate(parts_of(plan))
    return [_compare_part(plan, runs, complete, part, decides=index == 0) for index, part in parts]


def _compare_part(
    plan: StudyPlan, runs: Runs, complete: Mapping[str, Sequence[StudyRun]], part: str | None, *, decides: bool
) -> PartScores:
    names = [*complete]
    outcomes = {name: [_read(run.folder, STUDENT, part) for run in of_arm] for name, of_arm in complete.items()}
    first = outcomes[names[0]][0]
    metric, form = first["headline"], FORMS[first["metrics"][first["headline"]][0]]
    teacher_of = {name: runs.scorer_of_teacher(plan.arms[name]) for name in names}
    teachers = {
        name: _read(run.folder, TEACHER, part)
        for name, run in teacher_of.items()
        if run.is_complete() and (run.folder / EVALUATE.name / outcomes_file(TEACHER, part)).is_file()
    }
    for name, of_arm in outcomes.items():
        for run, found in zip(complete[name], of_arm, strict=True):
            _refuse_other_examples(first, complete[names[0]][0], found, run)
    baseline = plan.baseline if plan.baseline in complete else None
    ways = [[_expanded(one, metric, form) for one in of_arm] for of_arm in outcomes.values()]
    teacher = teachers.get(baseline or names[0])
    if teacher is not None and teacher["ids"] == first["ids"]:
        ways.append([_expanded(teacher, metric, form)] * len(plan.seeds))
    draws = draw(ways, form.value, draws_of_examples(len(first["ids"])))
    index_of = {name: index for index, name in enumerate(names)}
    others = [name for name in names if baseline is not None and name != baseline]
    found = {name: difference(draws, index_of[name], index_of[plan.baseline], confidence=CONFIDENCE) for name in others}
    adjusted = dict(zip(others, holm([found[name].p_value for name in others]), strict=True))
    has_teacher = len(ways) > len(names)
    # towards a teacher of its own there is no gap that the baseline had, too
    closing = [name for name in found if has_teacher and teacher_of[name] == teacher_of[plan.baseline]]
    arms = {
        name: ArmScores(
            dict(zip(plan.seeds, map(float, draws.scores[index_of[name]]), strict=True)),
            float(draws.means[index_of[name]]),
            found.get(name),
            adjusted.get(name),
            _gap(draws, index_of[name], index_of[plan.baseline], len(names)) if name in closing else None,
        )
        for name in names
    }
    return PartScores(
        part or HELDOUT,
        decides,
        metric,
        first["higher_is_better"],
        len(first["ids"]),
        float(draws.means[-1]) if has_teacher else None,
        arms,
    )


def _gap(draws: Draws, way: int, baseline: int, teacher: int) -> Share | None:
    return share_of_gap(draws, way, start=baseline, end=teacher, confidence=CONFIDENCE)


def _read(folder: Path, model: str, part: str | None) -> dict[str, Any]:
    file = folder / EVALUATE.name / outcomes_file(model, part)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("headline", "higher_is_better", "ids", "metrics", "columns")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: missing or damaged ({error!r}); remove {file.parents[1]} and start the study again"
        ) from error


def _expanded(outcomes: Mapping[str, Any], metric: str, form: Form) -> np.ndarray:
    """``[examples, sums]`` of a metric."""
    columns = [
        np.ones(len(outcomes["ids"]))
        if name == ONE
        else np.asarray([np.nan if one is None else one for one in outcomes["columns"][name]])
        for name in outcomes["metrics"][metric][1:]
    ]
    return form.expand(columns)


def _refuse_other_examples(
    first: Mapping[str, Any], first_run: StudyRun, other: Mapping[str, Any], run: StudyRun
) -> None:
    if first["ids"] != other["ids"] or first["headline"] != other["headline"]:
        raise CheckpointError(
            f"{run.folder}: was scored on other examples than {first_run.folder} ({len(other['ids'])} and "
            f"{len(first['ids'])}, by hashes of their tokens): data or tokenizers changed between the two; remove both "
            "and start the study again"
        )
