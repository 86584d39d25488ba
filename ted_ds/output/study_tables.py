"""The tables of a study, for the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StudyTable(NamedTuple):
    """One table; all columns but the first hold numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def in_markdown(title: str, paragraphs: Sequence[str], tables: Sequence[StudyTable], verdicts: Sequence[str]) -> str:
    """A section of a page of results."""
    lines = [f"## {title}", ""]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    lines += [*(f"- {verdict}" for verdict in verdicts), ""]
    for table in tables:
        lines += [f"{table.title}:", "", _row(table.columns), "|" + "---|" * len(table.columns)]
        lines += [*map(_row, table.rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
