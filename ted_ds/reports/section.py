"""What a page shows of one run or one study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ted_ds.reports.cards import Card, cards_of
from ted_ds.reports.figures import Drawing, drawings_of
from ted_ds.reports.reading import RunRecord
from ted_ds.reports.table import Table
from ted_ds.reports.tables import tables_of
from ted_ds.reports.verdict import Verdict, verdict_of


@dataclass(frozen=True)
class Section:
    """Verdict first, then figures, tables, and what decided them."""

    name: str
    origin: str
    """Where its numbers are from, in words."""
    verdict: Verdict
    tables: Sequence[Table]
    drawings: Sequence[Drawing] = ()
    samples: Sequence[Card] = ()
    inputs: Sequence[tuple[str, str]] = ()
    """Of each phase or arm, by its name, its settings as JSON."""
    last_report: float | None = None
    """When the newest of its numbers was reported, in seconds since 1970."""
    runs: Sequence[RunRecord] = field(default=(), repr=False)
    """Those to be compared with others'."""


def section_of_run(run: RunRecord) -> Section:
    """All there is of a run.

    Raises:
        DataError: matplotlib is not installed.
    """
    return Section(
        run.name,
        f"Run {run.run_id} in {run.folder}",
        verdict_of(run),
        tables_of(run),
        drawings_of(run),
        cards_of(run.samples),
        [(done.name, json.dumps(done.inputs, indent=2, ensure_ascii=False)) for done in run.phases],
        max((one["time"] for one in run.records if "time" in one), default=None),
        [run],
    )
