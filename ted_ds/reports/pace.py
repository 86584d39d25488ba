"""Time, speed and memory of a run, and how often it was started, from its reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ted_ds.output.step_parts import PARTS
from ted_ds.reports.reading import RunRecord, is_number
from ted_ds.reports.table import Table
from ted_ds.reports.verdict import shown

PART = re.compile(r"perf/step_s/(\w+)")
PEAK = re.compile(r"perf/peak_(\w+)_gib")
SPEEDS = {"perf/tflops_per_rank": "TFLOP/s per rank", "perf/mfu": "of the declared peak"}
NOTHING = "–"


def time_split(run: RunRecord) -> dict[str, dict[str, float]]:
    """Of each phase that says so, the seconds of each part of a step: the mean of all reports but the first.

    The first has what happens once, as workers that start; where it is the only one, it is taken.
    """
    found = {}
    for phase in run.reported_phases:
        reports = [one for one in run.of_phase(phase) if any(PART.fullmatch(name) for name in one)]
        timed = reports[1:] or reports
        sums: dict[str, float] = {}
        for report in timed:
            for name, value in report.items():
                match = PART.fullmatch(name)
                if match is not None and is_number(value):
                    sums[match[1]] = sums.get(match[1], 0.0) + value / len(timed)
        if sum(sums.values()) > 0:
            found[phase] = {part: sums[part] for part in PARTS if part in sums}
    return found


def pace_tables(run: RunRecord) -> Iterator[Table]:
    """Where time goes, what it is used for, how much memory is taken, and when the run was started."""
    times = time_split(run)
    parts = [part for part in PARTS if any(part in of_phase for of_phase in times.values())]
    rows = [
        [
            phase,
            _milliseconds(sum(of_phase.values())),
            *(_milliseconds(of_phase[part]) if part in of_phase else NOTHING for part in parts),
        ]
        for phase, of_phase in times.items()
    ]
    note = (
        "Mean over ranks and over all reports but the first. forward is that of what trains; communication is the wait "
        "for other ranks, too."
    )
    yield Table("Time of a step, in milliseconds", ("phase", "step", *parts), rows, note=note)
    yield _machine(run)
    yield _starts(run.starts)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _machine(run: RunRecord) -> Table:
    """Memory and speed of each phase."""
    peaks = sorted({match[1] for one in run.records for name in one if (match := PEAK.fullmatch(name))})
    speeds = [name for name in SPEEDS if any(name in one for one in run.records)]
    rows = []
    for phase in run.reported_phases:
        reports = run.of_phase(phase)
        most = [_values(reports, f"perf/peak_{place}_gib") for place in peaks]
        mean = [_values(reports, name) for name in speeds]
        if any(most) or any(mean):
            means = [sum(one[1:] or one) / len(one[1:] or one) if one else None for one in mean]
            rows.append(
                [
                    phase,
                    *(f"{max(one):.2f}" if one else NOTHING for one in most),
                    *(NOTHING if one is None else shown(one) for one in means),
                ]
            )
    columns = ("phase", *(f"peak {place} memory, GiB" for place in peaks), *(SPEEDS[name] for name in speeds))
    note = "Memory is that of the rank with most, since its process began. Operations are those of the plan."
    return Table("Memory and speed", columns, rows, note=note if rows else "")


def _values(reports: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [one[name] for one in reports if is_number(one.get(name))]


def _starts(starts: Sequence[Mapping[str, Any]]) -> Table:
    """Every start, and where it went on; nothing of a run that was started once."""
    begun = [one for one in starts if "ranks" in one]
    if len(begun) < 2:
        return Table("Starts", (), ())
    rows: list[list[str]] = []
    for one in starts:
        if "ranks" in one:
            rows.append([f"{datetime.fromtimestamp(one['time'], UTC):%d %B %Y, %H:%M:%S}", str(one["ranks"]), NOTHING])
        elif rows and "phase" in one:
            rows[-1][-1] = f"{one['phase']}, after step {one['after_step']}"
    note = "A start that went on nowhere began a phase anew, or found all complete. Times are UTC."
    return Table("Starts", ("started", "ranks", "went on in"), rows, note=note)
