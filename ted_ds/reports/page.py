"""A report as one HTML file that needs nothing else, with its figures as PNG files beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader

from ted_ds import __version__
from ted_ds.errors import CheckpointError
from ted_ds.reports.figures import Drawing, drawings_of
from ted_ds.reports.reading import RunRecord
from ted_ds.reports.tables import comparison, tables_of
from ted_ds.reports.verdict import verdict_of


def write_report(runs: Sequence[RunRecord], file: Path) -> list[Path]:
    """Write the page of one run or several, and the figures of each beside it.

    Returns:
        The files, the page first.

    Raises:
        DataError: matplotlib is not installed.
        CheckpointError: A file cannot be written.
    """
    drawn = [drawings_of(run) for run in runs]
    sections = [
        {
            "name": run.name,
            "folder": str(run.folder),
            "run_id": run.run_id,
            "verdict": verdict_of(run),
            "tables": tables_of(run),
            "drawings": _with_own_ids(drawings, index),
            "inputs": [(done.name, json.dumps(done.inputs, indent=2, ensure_ascii=False)) for done in run.phases],
        }
        for index, (run, drawings) in enumerate(zip(runs, drawn, strict=True))
    ]
    environment = Environment(loader=PackageLoader("ted_ds.reports", "."), autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html.jinja").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        sections=sections,
        comparison=comparison(runs) if len(runs) > 1 else [],
        made=_last_report(runs),
        version=__version__,
    )
    pictures = file.parent / f"{file.stem}_figures"
    files = [file]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for run, drawings in zip(runs, drawn, strict=True):
            place = pictures / run.name if len(runs) > 1 else pictures
            place.mkdir(parents=True, exist_ok=True)
            for drawing in drawings:
                files.append(place / f"{drawing.name}.png")
                files[-1].write_bytes(drawing.png)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{file}: the report cannot be written: {error}; give another place with --out"
        ) from error
    return files


def _with_own_ids(drawings: Sequence[Drawing], index: int) -> list[tuple[str, str]]:
    """Title and SVG of each; ids are told apart by the run they are of."""
    return [(one.title, one.svg.replace(f"{one.name}-", f"run{index}-{one.name}-")) for one in drawings]


def _last_report(runs: Sequence[RunRecord]) -> str:
    """When the newest number of the page was reported."""
    times = [one["time"] for run in runs for one in run.records if "time" in one]
    return datetime.fromtimestamp(max(times), UTC).strftime("%d %B %Y, %H:%M UTC") if times else "no report yet"
