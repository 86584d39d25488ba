"""The tables of a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.reports.reading import OF_LAYER, Record, RunRecord, is_number
from ted_ds.reports.verdict import BEGUN, gap_closed, millions, shown

MOST_SETTINGS = 60
"""That differ between runs: more say that these are other runs altogether."""
SOURCE = re.compile(r"data/(?P<source>.+)/(?P<what>tokens|records|epochs)")


@dataclass(frozen=True)
class Table:
    """Rows of words, the first column of each a name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float | None]] | None = None
    """Of cells behind the first, from 0 to 1: the better, the darker; None for none."""
    note: str = ""


def tables_of(run: RunRecord) -> list[Table]:
    """All tables that a run's files have numbers for."""
    found = [_models(run), *_filters(run), _phases(run), _sources(run)]
    return [table for table in found if table is not None and table.rows]


def comparison(runs: Sequence[RunRecord]) -> list[Table]:
    """Several runs beside each other: what they came to, and in what they differ."""
    rows = []
    for run in runs:
        share = gap_closed(run)
        scores = [run.score(model) for model in (TEACHER, BEGUN, STUDENT)]
        name = run.headline.name if run.headline is not None else "not scored yet"
        told = [shown(score) if score is not None else "–" for score in scores]
        rows.append([run.name, name, *told, f"{share:.0%}" if share is not None else "–"])
    columns = ("run", "metric", TEACHER, BEGUN, STUDENT, "of the way")
    settings = [{key: in_words(value) for key, value in settings_of(run).items()} for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [key for key in keys if len({one.get(key, "–") for one in settings}) > 1]
    note = f"{len(differing) - MOST_SETTINGS} more differ" if len(differing) > MOST_SETTINGS else ""
    of_settings = [[key, *(one.get(key, "–") for one in settings)] for key in differing[:MOST_SETTINGS]]
    tables = [Table("Runs", columns, rows)]
    if of_settings:
        tables.append(Table("Settings that differ", ("setting", *(run.name for run in runs)), of_settings, note=note))
    return tables


def settings_of(run: RunRecord) -> dict[str, Any]:
    """What decided each phase, by dotted path."""
    return {f"{done.name}.{key}": value for done in run.phases for key, value in _flat(done.inputs)}


def in_words(value: Any) -> str:
    """A setting, as JSON has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _flat(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for index, one in enumerate(value):
            yield from _flat(one, f"{place}[{index}]")
    else:
        yield place, value


def _models(run: RunRecord) -> Table | None:
    metrics = list(dict.fromkeys(name for scores in run.models.values() for name in scores))
    if not metrics or run.headline is None:
        return None
    order = [run.headline.name, *(name for name in metrics if name != run.headline.name)]
    order = ["num_parameters", *(name for name in order if name != "num_parameters")]
    rows = [
        [model, *(_cell(name, scores[name]) if name in scores else "–" for name in order)]
        for model, scores in run.models.items()
    ]
    return Table("Models", ("model", *(name.replace("_", " ") for name in order)), rows)


def _cell(name: str, value: float) -> str:
    if name == "num_parameters":
        return millions(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else shown(value)


def _filters(run: RunRecord) -> Iterator[Table]:
    """Held-out scores of filters, a row a model, a column a layer."""
    if run.headline is None:
        return
    name, higher = run.headline.name, run.headline.higher_is_better
    for phase in (one for one in run.phases if one.name.startswith("filters")):
        for side, layers in phase.result.get("filters", {}).items():
            scores = {layer: one.get(name) for layer, one in layers.items()}
            yield _heat(f"Filters of the {side}: held-out {name} of each", scores, higher=higher)
        if "filters" not in phase.result:
            yield _heat(
                f"{phase.name}: held-out {name} of each", _last_scores(run.of_phase(phase.name), name), higher=higher
            )


def _last_scores(records: Sequence[Record], name: str) -> dict[str, float]:
    """Of each layer, the last score that was reported."""
    found: dict[str, float] = {}
    for record in records:
        for key, value in record.items():
            match = OF_LAYER.fullmatch(key)
            if match is not None and match["metric"] == f"eval/{name}":
                found[match["layer"]] = value
    return found


def _heat(title: str, scores: Mapping[str, float | None], *, higher: bool) -> Table:
    known = [value for value in scores.values() if value is not None and is_number(value)]
    if not known:
        return Table(title, (), ())
    low, high = min(known), max(known)

    def shade(value: float | None) -> float | None:
        if value is None or not is_number(value):
            return None
        share = (value - low) / (high - low) if high > low else 0.5
        return share if higher else 1 - share

    cells = [shown(value) if value is not None and is_number(value) else "–" for value in scores.values()]
    columns = ("", *(layer.replace("_", " ") for layer in scores))
    return Table(title, columns, [["score", *cells]], shades=[[shade(value) for value in scores.values()]])


def _phases(run: RunRecord) -> Table:
    """Steps, tokens and time of each phase that reported."""
    rows = []
    for phase in run.reported_phases:
        records = run.of_phase(phase)
        steps = [one for one in records if one["step"]]
        tokens = max((one.get("train/total_tokens", 0) for one in records), default=0)
        speeds = [one["perf/tokens_per_s"] for one in records if is_number(one.get("perf/tokens_per_s"))]
        seconds = _seconds(records)
        rows.append(
            [
                phase,
                str(steps[-1]["step"]) if steps else "–",
                f"{tokens:,.0f}" if tokens else "–",
                f"{seconds:,.0f}",
                shown(sum(speeds) / len(speeds)) if speeds else "–",
            ]
        )
    note = "Seconds are those from the first report to the last; a break in which the run was stopped is among them."
    return Table("Phases", ("phase", "steps", "tokens", "seconds", "tokens/s"), rows, note=note)


def _seconds(records: Sequence[Record]) -> float:
    times = [one["time"] for one in records if is_number(one.get("time"))]
    return max(times) - min(times) if times else 0.0


def _sources(run: RunRecord) -> Table:
    """What each source of a corpus has given to each phase."""
    rows = []
    for phase in run.reported_phases:
        last: dict[str, dict[str, float]] = {}
        for record in run.of_phase(phase):
            for name, value in record.items():
                match = SOURCE.fullmatch(name)
                if match is not None:
                    last.setdefault(match["source"], {})[match["what"]] = value
        for source, counts in last.items():
            read = [f"{counts[what]:,.0f}" if what in counts else "–" for what in ("tokens", "records")]
            rows.append([f"{phase}: {source}", *read, f"{counts['epochs']:.3g}" if "epochs" in counts else "–"])
    return Table("Data read", ("source", "tokens", "records", "epochs"), rows)
