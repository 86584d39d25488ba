"""What a person sees: a progress bar per phase, messages, and the table at the end. Rank 0 only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SHOWN_VALUES = {
    "loss/total": "loss",
    "loss/task": "task",
    "loss/(.+)_teacher_student": r"\1",
    "loss/(.+)_student_teacher": r"reverse \1",
    "loss/(?:text_)?feature_([^/]+)": r"feature \1",
    "train/padding": "padding",
    "perf/tokens_per_s": "tok/s",
}
"""Patterns of metrics, in the order of a line, and what they are called there."""


LOG_WIDTH = 120


class Screen:
    """A terminal gets a live bar, a log file one line per report."""

    def __init__(self, *, shown: bool) -> None:
        # a log file has no width of its own: wide enough that no line is broken
        self._console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        if not self._console.is_terminal:
            self._console.width = LOG_WIDTH
        self._progress: Progress | None = None
        self._phase, self._max_steps = "", 0

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def start(self, phase: str, max_steps: int) -> None:
        """Begin a phase's bar."""
        self._phase, self._max_steps = phase, max_steps
        if self._console.is_terminal and not self._console.quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._progress.start()
            self._progress.add_task(phase, total=max_steps, values="")

    def update(self, step: int, values: Mapping[str, float], *, remaining_s: float) -> None:
        """Show a report: loss terms, tokens per second, time left."""
        found = ((re.fullmatch(pattern, name), short) for pattern, short in SHOWN_VALUES.items() for name in values)
        text = "  ".join(f"{match.expand(short)} {values[match[0]]:.4g}" for match, short in found if match)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, values=text)
        else:
            self.say(f"  {self._phase} {step}/{self._max_steps}  {text}  {remaining_s:.0f} s left")

    def stop(self) -> None:
        """End the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> None:
        """Print a small table; ``numbers`` where all columns but the first hold numbers, not words."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if numbers and index else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table, soft_wrap=False)
