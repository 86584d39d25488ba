"""What a person sees: a progress bar per phase, messages, and the table at the end. Rank 0 only."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
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
NARROW, LONGEST_NAME, BAR_WIDTHS = 100, 20, (10, 20)
"""Columns below which a live line has the shorter bar, and the phase's name no more than so many."""
TICKS = ("✓", "[x]")


class Screen:
    """A terminal gets a live line, anything else a line per report, and not more often than is asked for."""

    def __init__(self, *, shown: bool, log_every_s: float = 0.0) -> None:
        """Begin.

        Args:
            shown: Whether anything is printed.
            log_every_s: Where there is no terminal, reports of a phase are at least so far apart, but for its first
                and its last.
        """
        # a log file has no width of its own: wide enough that no line is broken
        self._console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        if not self._console.is_terminal:
            self._console.width = LOG_WIDTH
        # a file is none, whatever $FORCE_COLOR says
        self._is_live = shown and self._console.file.isatty() and not self._console.is_dumb_terminal
        self._progress: Progress | None = None
        self._phase, self._max_steps = "", 0
        self._log_every_s, self._next_line = log_every_s, 0.0

    @property
    def tick(self) -> str:
        """What stands before something that is done."""
        return TICKS[not self._console.encoding.lower().startswith("utf")]

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def start(self, phase: str, max_steps: int) -> None:
        """Begin a phase's bar."""
        self._phase, self._max_steps = phase, max_steps
        self._next_line = 0.0
        if self._is_live:
            is_narrow = self._console.width < NARROW
            name = Column(no_wrap=True, overflow="ellipsis", max_width=LONGEST_NAME if is_narrow else None)
            # what is left of the line, and no second one
            values = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self._progress = Progress(
                TextColumn("{task.description}", table_column=name),
                BarColumn(bar_width=BAR_WIDTHS[not is_narrow]),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=is_narrow),
                TextColumn("{task.fields[values]}", table_column=values),
                console=self._console,
                expand=True,
            )
            self._progress.start()
            self._progress.add_task(phase, total=max_steps, values="")

    def update(self, step: int, values: Mapping[str, float], *, remaining_s: float) -> None:
        """Show a report: loss terms, tokens per second, time left."""
        found = ((re.fullmatch(pattern, name), short) for pattern, short in SHOWN_VALUES.items() for name in values)
        text = "  ".join(f"{match.expand(short)} {values[match[0]]:.4g}" for match, short in found if match)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, values=text)
        elif step == self._max_steps or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._log_every_s
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
            table.add_column(column, justify="right" if numbers and index else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table, soft_wrap=False)


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
