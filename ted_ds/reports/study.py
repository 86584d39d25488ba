"""A study's folder as a section of a page: what is said of each arm, intervals, and quality beside what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError
from ted_ds.numerics.paired_draws import Difference
from ted_ds.output.study_folder import STUDY_FILE
from ted_ds.output.study_words import LEVEL, Measure
from ted_ds.planning.phase import FINETUNE_TEACHER, PHASES
from ted_ds.reports.figures import Drawing, draw_costs, draw_intervals, drawing_with
from ted_ds.reports.section import Section
from ted_ds.reports.table import Table
from ted_ds.reports.verdict import Verdict

OF_A_STUDENT = [one.name for one in PHASES if one.is_of_a_stage and one is not FINETUNE_TEACHER]
"""Phases that are charged to an arm."""
NOTHING = "–"


def is_study(folder: Path) -> bool:
    """Whether a study left its results there."""
    return (folder / STUDY_FILE).is_file()


def section_of_study(folder: Path) -> Section:
    """All there is of a study.

    Raises:
        DataError: Its file is damaged, or matplotlib is not installed.
    """
    file = folder / STUDY_FILE
    try:
        study = json.loads(file.read_text(encoding="utf-8"))
        tables = [*_tables(study)]
        drawings = drawing_with(lambda: _drawings(study))
        failed = [f"{name} is not complete: {why}" for name, why in study["failed"].items()]
        inputs = [(f"recipe, by ted_ds {study['version']}", json.dumps(study["recipe"], indent=2, ensure_ascii=False))]
        inputs += [
            (name, json.dumps(arm["changes"], indent=2, ensure_ascii=False)) for name, arm in study["arms"].items()
        ]
        verdict = Verdict([f"{one}." for one in study["verdicts"]], failed)
        return Section(study["name"], f"Study in {folder}", verdict, tables, drawings, inputs=inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error!r}); start the study again, which writes it anew") from error


def _tables(study: Mapping[str, Any]) -> Iterator[Table]:
    for table in study["tables"]:
        yield Table(table["title"], table["columns"], table["rows"])
    seconds = _seconds(study)
    costs = [
        [
            arm,
            NOTHING if of_arm["steps"] is None else f"{of_arm['steps']:,}",
            NOTHING if of_arm["total_operations"] is None else f"{of_arm['total_operations'] / 1e12:.4g}",
            NOTHING if arm not in seconds else f"{seconds[arm]:.0f}",
        ]
        for arm, of_arm in study["arms"].items()
    ]
    yield Table(
        f"What an arm takes, at equal {study['equal']}",
        ("arm", "steps of Stage II", "10^12 operations, by the plan", "seconds, measured"),
        costs,
        note="The teacher's own training is before it, and not counted. Seconds are those of making the student, "
        "whoever did it first, the mean over seeds.",
    )


def _seconds(study: Mapping[str, Any]) -> dict[str, float]:
    """Of each arm of which all is known: what making its student took, the mean over its runs."""
    found: dict[str, list[float | None]] = {}
    for name, run in study["runs"].items():
        arm = name.rpartition(".")[0]
        spent = [run["seconds"][phase] for phase in OF_A_STUDENT if phase in run["seconds"]]
        found.setdefault(arm, []).append(None if None in spent else sum(spent))
    return {
        arm: sum(one for one in of_runs if one is not None) / len(of_runs)
        for arm, of_runs in found.items()
        if None not in of_runs
    }


def _gain(scores: Mapping[str, Any], measure: Measure) -> tuple[float, float, float] | None:
    """How much better an arm is than the baseline, and the interval; None for that itself."""
    found = scores["difference"]
    if found is None:
        return None
    return measure.gain(Difference(**found))


def _drawings(study: Mapping[str, Any]) -> Iterator[Drawing]:
    for name, part in study["parts"].items():
        if not part["decides"]:
            continue
        measure = Measure(part["metric"], part["higher_is_better"])
        gains = {arm: _gain(scores, measure) for arm, scores in part["arms"].items()}
        known = {arm: gain for arm, gain in gains.items() if gain is not None}
        if known:
            told = [arm for arm in known if part["arms"][arm]["holm_p"] <= LEVEL]
            title = (
                f"Better than {study['baseline']} on {name}, {measure.unit}: each arm's own 95 % interval, in colour "
            )
            yield draw_intervals("intervals", f"{title}where it holds among all arms (Holm)", known, told)
        operations = {arm: of_arm["total_operations"] for arm, of_arm in study["arms"].items()}
        by_plan = {arm: value / 1e12 for arm, value in operations.items() if value is not None}
        takes = {
            "costs": (by_plan, "10^12 operations of the student's making, by the plan"),
            "seconds": (_seconds(study), "seconds of the student's making, measured"),
        }
        for name_of_figure, (costs, along) in takes.items():
            points = {
                arm: (costs[arm], [*scores["by_seed"].values()]) for arm, scores in part["arms"].items() if arm in costs
            }
            if points:
                title = f"{part['metric']} beside {'operations' if costs is by_plan else 'time'}"
                yield draw_costs(name_of_figure, title, points, (along, part["metric"]), part["teacher"])
