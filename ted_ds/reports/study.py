"""A study's folder as a section of a page: what is said of each arm, intervals, and quality beside what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError
from ted_ds.output.study_words import Measure
from ted_ds.reports.figures import Drawing, draw_costs, draw_intervals, drawing_with
from ted_ds.reports.section import Section
from ted_ds.reports.tables import Table
from ted_ds.reports.verdict import Verdict, shown

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
        return Section(study["name"], f"Study in {folder}", verdict, tables, drawings, inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error!r}); start the study again, which writes it anew") from error


def _tables(study: Mapping[str, Any]) -> Iterator[Table]:
    seeds = [str(seed) for seed in study["seeds"]]
    for name, part in study["parts"].items():
        measure = Measure(part["metric"], part["higher_is_better"])
        baseline = f"better than {study['baseline']}, {measure.unit}"
        columns = ("arm", "mean", *(f"seed {seed}" for seed in seeds), baseline, "95 % interval", "p, Holm")
        rows = []
        for arm, scores in part["arms"].items():
            values = [scores["mean"], *(scores["by_seed"][seed] for seed in seeds)]
            gain = _gain(scores, measure)
            cells = [NOTHING] * 3
            if gain is not None:
                p_value = NOTHING if scores["holm_p"] is None else f"{scores['holm_p']:.2g}"
                cells = [measure.signed(gain[0]), measure.interval(gain[1], gain[2]), p_value]
            rows.append([arm, *map(shown, values), *cells])
        if part["teacher"] is not None:
            rows.append(["teacher", shown(part["teacher"]), *[NOTHING] * (len(columns) - 2)])
        yield Table(f"{part['metric']} on {name}, {part['num_examples']:,} examples", columns, rows)
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
    values = [measure.scale * found[key] for key in ("estimate", "low", "high")]
    return (values[0], values[1], values[2]) if measure.higher_is_better else (-values[0], -values[2], -values[1])


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
