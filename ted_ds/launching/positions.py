"""Where each rank was among its collectives when another one was lost: small files, which who looks on puts together.

A rank that died wrote none, nor one that hangs outside of a collective: it is then the one that is not there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import counted

FILE = "collectives_{rank:05d}.json"
NAME = re.compile(r"collectives_(\d+)\.json")
NCCL_PREFIX = "nccl_trace_rank_"
"""Begins the names of files that torch writes, where NCCL's watchdog ends a rank."""
MOST_TOLD = 8


@dataclass(frozen=True)
class Position:
    """The collective that a rank was in."""

    rank: int
    num_ranks: int
    host: str
    name: str
    """Of the collective, by torch's flight recorder."""
    number: int
    """Of the collective in its group, from 1."""
    group: str
    """The group it is in."""
    sizes: str
    """Of its tensors."""
    is_open: bool
    """Whether it is known not to have ended; of one that failed, the recorder does not always know."""
    called_by: str
    """The line of ted_ds that called it."""

    @property
    def in_words(self) -> str:
        """In a line."""
        what = f"{'in' if self.is_open else 'last in'} {self.name}, number {self.number} of group {self.group}"
        by = f", called by {self.called_by}" if self.called_by else ""
        return f"rank {self.rank} on {self.host}: {what} ({self.sizes}){by}"


def position_file(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / FILE.format(rank=rank)


def write_position(folder: Path, position: Position, trace: Mapping[str, Any]) -> Path:
    """Leave a rank's file, with all that its flight recorder has; returns it.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = position_file(folder, position.rank)
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps({"position": asdict(position), "flight_recorder": trace}) + "\n", encoding="utf-8")
    beside.replace(file)
    return file


def read_positions(folder: Path) -> list[Position]:
    """Those that ranks left in a folder, by rank; what cannot be read is left out."""
    found = []
    for file in sorted(folder.glob("collectives_*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(Position(**json.loads(file.read_text(encoding="utf-8"))["position"]))
    return sorted(found, key=lambda one: one.rank)


def positions_in_words(folder: Path) -> list[str]:
    """Lines on where ranks were, which left nothing, and where the files are; none where there are none."""
    positions = read_positions(folder)
    of_nccl = sorted(folder.glob(f"{NCCL_PREFIX}*"))
    lines = []
    if positions:
        lines += [one.in_words for one in positions[:MOST_TOLD]]
        if len(positions) > MOST_TOLD:
            lines.append(f"and {len(positions) - MOST_TOLD} other ranks")
        absent = sorted(set(range(positions[0].num_ranks)) - {one.rank for one in positions})
        if absent:
            lines.append(f"nothing was left by {_ranks(absent)}: look there first")
        lines.append(f"what torch's flight recorder had is in {folder / 'collectives_*.json'}")
    if of_nccl:
        lines.append(
            f"NCCL's watchdog left {len(of_nccl)} traces in {folder}: python -m "
            f"torch.distributed.flight_recorder.fr_trace --prefix {NCCL_PREFIX} {folder} compares them"
        )
    return lines


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:MOST_TOLD]))
    more = f" and {counted(len(ranks) - MOST_TOLD, 'other')}" if len(ranks) > MOST_TOLD else ""
    return f"rank{'s'[: len(ranks) > 1]} {shown}{more}"
