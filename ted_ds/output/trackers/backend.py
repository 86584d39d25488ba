"""What each place for numbers does; :mod:`ted_ds.output.tracking` gives all of them the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """The run whose numbers they are."""

    folder: Path
    """Its output folder; each backend has a place of its own in it."""
    run_id: str
    """Its own, the same whenever it is started again."""
    name: str
    project: str
    config: Mapping[str, Any]
    """The recipe, without secrets."""


class Backend(Protocol):
    """One place for numbers. On one rank only; each call may raise whatever its library raises."""

    title: str
    """Its name in messages."""

    def open(self, run: TrackedRun) -> None:
        """Begin, or go on where an earlier start of the run left off."""
        ...

    def rewind(self, phase: str, step: int, scored_step: int) -> None:
        """What was logged of a phase beyond a step, and of its scores beyond another, comes again.

        A backend that cannot forget it has it twice, then.
        """

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Take a phase's values at a step (optimizer steps, from 1; 0 for results of the phase as a whole)."""
        ...

    def summarise(self, values: Mapping[str, float]) -> None:
        """Take the final values of the run."""
        ...

    def close(self) -> None:
        """Send or write what is left, and let go of everything."""
        ...

    def place(self) -> str | None:
        """Where the numbers are, in words; None where that needs no saying."""
        ...


def complain(text: str) -> None:
    """Say that numbers are lost to a backend; the run goes on."""
    print(f"WARN {text}", file=sys.stderr, flush=True)


def in_one_line(error: Exception) -> str:
    """An error as a part of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
