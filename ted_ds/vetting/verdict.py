"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check."""

    check: str
    """What was looked at."""
    status: Status
    """``fail``: do not train with this; ``warn``: look at it; ``skip``: could not be looked at, ``detail`` says why."""
    detail: str


def failures(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that failed."""
    return [verdict for verdict in verdicts if verdict.status == "fail"]
