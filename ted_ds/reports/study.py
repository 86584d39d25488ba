"""A study's folder as a section of a page: what is said of each arm, intervals, and quality beside what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError
from ted_ds.numerics.paired_draws import Difference
from ted_ds.output.study_words import Measure
from ted_ds.reports.figures import Drawing, draw_costs, draw_intervals, drawing_with
from ted_ds.reports.section import Section
from ted_ds.reports.table import Table
from ted_ds.reports.verdict import Verdict

STUDY = "study.json"
NOTHING = "–"


def is_study(folder: Path) -> bool:
    """Whether a study left its results there."""
    return (folder / STUDY).is_file()


def section_of_study(folder: Path) -> Section:
    """All there is of a study.

    Raises:
        DataError: Its file is damaged, or matplotlib is not installed.
    """
    file = folder / STUDY
    try:
        study = json.loads(file.read_text(encoding="utf-8"))
        tables = [*_tables(study)]
        drawings = drawing_with(lambda: _drawings(study))
        failed = [f"{name} is not complete: {why}" for name, why in study["failed"].items()]
        inputs = [
            (name, json.dumps(arm["changes"], indent=2, ensure_ascii=False)) for name, arm in study["arms"].items()
        ]
        verdict = Verdict([f"{one[0].upper()}{one[1:]}." for one in study["verdicts"]], failed)
        return Section(study["name"], f"Study in {folder}", verdict, tables, drawings, inputs=inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error!r}); start the study again, which writes it anew") from error


def _tables(study: Mapping[str, Any]) -> Iterator[Table]:
    for table in study["tables"]:
        yield Table(table["title"], table["columns"], table["rows"])
    costs = [
        [
            arm,
            NOTHING if of_arm["steps"] is None else f"{of_arm['steps']:,}",
            NOTHING if of_arm["total_operations"] is None else f"{of_arm['total_operations'] / 1e12:.4g}",
        ]
        for arm, of_arm in study["arms"].items()
    ]
    yield Table(
        f"What an arm takes, at equal {study['equal']}",
        ("arm", "steps of Stage II", "10^12 operations, by the plan"),
        costs,
        note="The teacher's own training is before it, and not counted.",
    )


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
            title = f"Better than {study['baseline']} on {name}, {measure.unit}, with 95 % intervals"
            yield draw_intervals("intervals", title, known)
        costs = {arm: of_arm["total_operations"] for arm, of_arm in study["arms"].items()}
        points = {
            arm: (costs[arm] / 1e12, [*scores["by_seed"].values()])
            for arm, scores in part["arms"].items()
            if costs[arm] is not None
        }
        if points:
            yield draw_costs("costs", f"{part['metric']} beside what it takes", points, part["metric"])
