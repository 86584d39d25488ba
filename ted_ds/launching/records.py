"""What each rank of an attempt leaves in its log folder: what it printed, who it is, and how it ended.

Exit codes get lost between a rank and whoever started it: ``srun --kill-on-bad-exit`` ends the others, ``deepspeed``
replaces them, a batch system sees those of a script. Files do not.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ted_ds.launching.lasting_output import say_at_once
from ted_ds.launching.processes import Process
from ted_ds.launching.starters import Told

LOG_DIR = "TED_DS_LOG_DIR"
"""The variable that names the folder of an attempt, on all hosts; without it, ranks print where they were started."""
STOP_FILE = "stop"
"""Where it is there, the ranks save and stop."""


@dataclass(frozen=True)
class RankRecord:
    """Who a rank is, and how it ended; times are seconds since 1970, by its own clock."""

    rank: int
    num_ranks: int
    host: str
    process: int
    began: float
    machine: str = ""
    """As in :class:`Process`."""
    asked: str | None = None
    """The first signal it got."""
    asked_at: float | None = None
    ended: float | None = None
    code: int | None = None
    """None while it runs, and where it died without a word."""
    fault: str | None = None
    """What its GPU failed with, if that ended it."""

    def write(self, folder: Path) -> None:
        """Put it into an attempt's folder, in the place of the one before."""
        file = record_file(folder, self.rank)
        beside = file.with_name(f".{file.name}")
        beside.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        beside.replace(file)


def record_file(folder: Path, rank: int) -> Path:
    """The record of a rank."""
    return folder / f"rank_{rank:05d}.json"


def read_records(folder: Path) -> list[RankRecord]:
    """Those of an attempt, by rank; one that cannot be read just now is left out."""
    found = map(_read, sorted(folder.glob("rank_*.json")))
    return [one for one in found if one is not None]


def _read(file: Path) -> RankRecord | None:
    # a network's file system may have none of it while it is replaced
    with contextlib.suppress(OSError, ValueError, TypeError):
        return RankRecord(**json.loads(file.read_text(encoding="utf-8")))
    return None


def log_file(folder: Path, rank: int) -> Path:
    """What a rank printed."""
    return folder / f"rank_{rank:05d}.log"


def log_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder of this attempt; None where nobody asked for one."""
    name = environment.get(LOG_DIR)
    return Path(name) if name else None


def _still_runs(record: RankRecord) -> bool:
    """Whether a process, other than this one, that wrote a record can be seen to run on this host."""
    writer = Process(record.host, record.machine, record.process, record.began)
    return record.process != os.getpid() and writer.lives() is True


class OwnRecord:
    """The record of this process."""

    def __init__(self, folder: Path) -> None:
        """Write down who this is.

        Raises:
            OSError: The folder is not there, or cannot be written, or is another run's. (It is made by who starts the
                ranks: one that is made here would be this host's own.)
        """
        self._folder = folder
        told = Told.by(os.environ)
        before = _read(record_file(folder, told.rank))
        if before is not None and before.ended is None and _still_runs(before):
            raise FileExistsError(
                f"rank {told.rank} of another run still writes there ({before.host}:{before.process}); give each run a "
                "folder of its own"
            )
        own = Process.own()
        self._record = RankRecord(told.rank, told.num_ranks, own.host, own.number, own.began, own.machine)
        self._record.write(folder)

    @property
    def rank(self) -> int:
        """Which this is."""
        return self._record.rank

    def asked(self, signal_name: str) -> None:
        """A signal came; what else comes is not written down."""
        self._update(asked=signal_name, asked_at=time.time())

    def failed(self, fault: str) -> None:
        """Its hardware failed; what follows from that is not written down."""
        if self._record.fault is None:
            self._update(fault=fault)

    def ended(self, code: int) -> None:
        """This is the end."""
        self._update(ended=time.time(), code=code)

    def _update(self, **changes: object) -> None:
        self._record = replace(self._record, **changes)  # type: ignore[arg-type]
        try:
            self._record.write(self._folder)
        except OSError as error:  # what counts is elsewhere
            say_at_once(f"WARN {self._folder}: rank {self.rank} cannot say how it ended: {error}")
