"""A report as one HTML file that needs nothing else, with its figures as PNG files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader

from ted_ds import __version__
from ted_ds.errors import CheckpointError
from ted_ds.reports.figures import Drawing
from ted_ds.reports.section import Section
from ted_ds.reports.tables import comparison


def write_report(sections: Sequence[Section], file: Path) -> list[Path]:
    """Write the page of some runs and studies, and the figures of each beside it.

    Returns:
        The files, the page first.

    Raises:
        CheckpointError: A file cannot be written.
    """
    runs = [run for section in sections for run in section.runs]
    environment = Environment(loader=PackageLoader("ted_ds.reports", "."), autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html.jinja").render(
        title=sections[0].name if len(sections) == 1 else f"{len(sections)} runs",
        sections=[(section, _with_own_ids(section.drawings, index)) for index, section in enumerate(sections)],
        comparison=comparison(runs) if len(runs) > 1 else [],
        made=_last_report(sections),
        version=__version__,
    )
    pictures = file.parent / f"{file.stem}_figures"
    files = [file]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for section in sections:
            place = pictures / section.name if len(sections) > 1 else pictures
            place.mkdir(parents=True, exist_ok=True)
            for drawing in section.drawings:
                files.append(place / f"{drawing.name}.png")
                files[-1].write_bytes(drawing.png)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error}; give another place with --out") from error
    return files


def _with_own_ids(drawings: Sequence[Drawing], index: int) -> list[tuple[str, str]]:
    """Title and SVG of each; ids are told apart by the section they are of."""
    return [(one.title, one.svg.replace(f"{one.name}-", f"part{index}-{one.name}-")) for one in drawings]


def _last_report(sections: Sequence[Section]) -> str:
    """When the newest number of the page was reported."""
    times = [section.last_report for section in sections if section.last_report is not None]
    return f"; last report: {datetime.fromtimestamp(max(times), UTC):%d %B %Y, %H:%M UTC}" if times else ""
