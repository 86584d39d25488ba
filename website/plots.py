"""Plots made when the site is built: of the tables in ``docs/results.md``, and of the formulas in ``numerics``."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import NamedTuple

from ted_ds.config.distill import PARAMETERS
from website.axes import Axes, row_of_panels
from website.places import ROOT

DIVERGENCES = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tv")
TEACHERS_SHARE = 0.8


class Table(NamedTuple):
    """One of a page."""

    head: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Its cells; the name may be the beginning of its title.

        Raises:
            StopIteration: There is none.
        """
        index = next(number for number, title in enumerate(self.head) if title.startswith(name))
        return [row[index] for row in self.rows]


def tables_below(heading: str) -> list[Table]:
    """The tables of a section of the results.

    Raises:
        ValueError: There is no such section, or no table in it.
    """
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    _, found, after = text.partition(f"\n## {heading}\n")
    blocks = after.split("\n## ", 1)[0].split("\n\n")
    tables = [[_cells(line) for line in block.split("\n")] for block in blocks if block.startswith("|")]
    if not found or not tables:
        raise ValueError(f"docs/results.md: no table below {heading!r}, which website/plots.py draws")
    return [Table(head, rows) for head, _, *rows in tables]


def _cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


def number(cell: str) -> float:
    """What a cell says."""
    return float(cell.replace(",", ""))


def quality_and_speed() -> str:
    """The quickstarts' models: how good, and how fast."""
    panels = []
    for table, metric, title, log in (
        (tables_below("The quickstarts")[0], "held-out perplexity", "SmolLM2: perplexity (less is better)", True),
        (_classification(), "held-out accuracy", "MiniLM: accuracy (more is better)", False),
    ):
        points = [*zip(map(number, table.column("tokens/s")), map(number, table.column(metric)), strict=True)]
        axes = Axes(title, "tokens/s, forward", log_y=log, points=points)
        for (x, y), name in zip(points, table.column("model"), strict=True):
            kind = "one" if name.startswith("teacher") else "three"
            axes.dot(x, y, kind, escape(name.split(" (")[0].split(",")[0].removeprefix("student ")))
        panels.append(axes)
    return row_of_panels("Quality beside speed of the quickstarts' models", panels)


def _classification() -> Table:
    return next(one for one in tables_below("The quickstarts") if "held-out accuracy" in one.head)


def ways_to_begin() -> str:
    """Arms of the study of starts: accuracy of each seed beside what it costs."""
    table, *_ = tables_below("Ways to begin and to go on: Rotten Tomatoes, MiniLM 6 blocks to 2")
    cost = [*map(number, table.column("operations"))]
    seeds = [
        [number(row[index]) for index, title in enumerate(table.head) if title.startswith("seed")] for row in table.rows
    ]
    means = [*map(number, table.column("mean"))]
    points = [(x, y) for x, ys in zip(cost, seeds, strict=True) for y in ys]
    axes = Axes("Accuracy of the mean, and of each seed", "operations, 10¹²", points=points, width=700)
    for x, ys, mean, name in zip(cost, seeds, means, table.column("arm"), strict=True):
        for y in ys:
            axes.dot(x, y, "box", None)
        axes.dot(x, mean, "two" if "sft" in name else "three", escape(name.replace("filters ", "")))
    return row_of_panels("Ways to begin and to go on: quality beside cost", [axes])


def divergence_curves() -> str:
    """Each divergence of a student's q from a teacher's p, where there are two outcomes."""
    import torch

    from ted_ds.numerics.divergences import Softened, make_divergence

    shares = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    student, teacher = (torch.stack([one, 1 - one], -1) for one in (shares, torch.full_like(shares, TEACHERS_SHARE)))
    of_each = {}
    for kind in DIVERGENCES:
        parameter = next((default for kinds, default in PARAMETERS.values() if kind in kinds), None)
        values = make_divergence(kind, parameter).of_rows(
            Softened(teacher, teacher.log()), Softened(student, student.log())
        )
        of_each[kind] = [*zip(shares.tolist(), values.tolist(), strict=True)]
    points = [(x, min(y, 1.2)) for curve in of_each.values() for x, y in curve]
    axes = Axes(
        f"Of two outcomes, where the teacher gives the first {TEACHERS_SHARE}",
        "what the student gives it",
        points=points,
        width=700,
    )
    for number_of, (kind, curve) in enumerate(of_each.items()):
        axes.line([point for point in curve if point[1] <= 1.2], number_of, kind)
    return row_of_panels("Divergences of two outcomes", [axes])


PLOTS: dict[str, Callable[[], str]] = {
    "quality_and_speed": quality_and_speed,
    "ways_to_begin": ways_to_begin,
    "divergence_curves": divergence_curves,
}
"""By the name that a page asks for."""
