"""Where the ranks of a run meet first: a store that rank 0 opens, and a word about who is still missing."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ted_ds.errors import RankLostError, TopologyError
from ted_ds.launching.records import LOG_DIR

c10d: Any = dist
"""Whose stores are not exported as far as its annotations go."""
FIRST_WORD_S, SAY_EVERY_S = 3.0, 15.0
LOOK_EVERY_S = 0.1
HIGHEST_PORT = 65535
RANKS_AT_ONCE = 64
"""More of them look less often: all ask rank 0."""
ANSWER_WITHIN_S = 10.0
SAME_RUN = ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", LOG_DIR)
"""Variables that all ranks of a run have in common: those of two runs that meet at one port may not."""
IN_USE = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
ANOTHER_PORT = (
    "give this run a port of its own: deepspeed --master_port PORT, torchrun --master_port PORT, or $MASTER_PORT"
)
HERE, ALL_HERE, RUN = "ted_ds/here", "ted_ds/all", "ted_ds/run"


_met: list[Any] = []
"""The store where this process met the others, and each part of it that a run had after the first."""


def meet_again(timeout_s: float) -> tuple[Any, int, int]:
    """A store for the next run of this process, its rank, and how many there are.

    Whom a launcher started stays: once they have met, a later run takes a part of the store that none had before, so
    that no rank can be taken for that of an earlier run. All ranks must have had as many runs.

    Raises:
        TedError: See :meth:`Meeting.gather`.
    """
    meeting = Meeting(timeout_s)
    _met.append(c10d.PrefixStore(f"run_{len(_met)}", _met[0]) if _met else meeting.gather())
    return _met[-1], meeting.rank, meeting.size


def forget_meeting() -> None:
    """Close the store where this process met the others, if it holds it."""
    _met.clear()


class Meeting:
    """One rank's way to the others, by torch's variables of the environment."""

    def __init__(self, timeout_s: float) -> None:
        """Prepare; all ranks must have come ``timeout_s`` from now on.

        Raises:
            TopologyError: The port is none.
        """
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if not port.isdecimal() or not 0 < int(port) <= HIGHEST_PORT:
            raise TopologyError(
                f"$MASTER_PORT is {port!r}: must be a whole number from 1 to {HIGHEST_PORT}; set it anew"
            )
        self._port = int(port)
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self._said_at: float | None = None

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._port}"

    def gather(self) -> Any:
        """Wait for all ranks; the store they share.

        Raises:
            TopologyError: The port is another program's, or another run meets there.
            RankLostError: Not all of them came in time.
        """
        store = self._open()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if attempt is not None:
            # torchrun may keep its store over a restart, and in it the addresses of the ranks that died
            store = c10d.PrefixStore(f"attempt_{attempt}", store)
        self._register(store)
        here = int(store.add(HERE, 1))
        while here < self.size and not store.check([ALL_HERE]):
            if self.rank == 0:
                missing = [rank for rank in range(self.size) if not store.check([_key(rank)])]
                names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
                self._wait(f"{self.size - here} of {self.size} ranks ($WORLD_SIZE) at {self._place}; missing: {names}")
            else:
                self._wait(f"{self.size - here} of {self.size} ranks at {self._place}", is_said=False)
            here = int(store.add(HERE, 0))
        store.set(ALL_HERE, "yes")
        return store

    def _open(self) -> Any:
        by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process has opened it
        if self.rank == 0 and not by_agent:
            return self._listen()
        while (reason := self._why_silent()) is not None:
            self._wait(f"rank 0 at {self._place} ($MASTER_ADDR, $MASTER_PORT), which does not answer: {reason}")
        return self._connect()

    def _listen(self) -> Any:
        try:
            return c10d.TCPStore(
                self._host, self._port, self.size, True, timedelta(seconds=self._timeout_s), wait_for_workers=False
            )
        except (c10d.DistError, RuntimeError, ValueError) as error:
            if IN_USE.search(str(error)):
                raise TopologyError(
                    f"port {self._port} of {self._host} ($MASTER_PORT), where the ranks meet, is in use by another "
                    f"program or run; {ANOTHER_PORT}"
                ) from error
            raise TopologyError(
                f"rank 0 cannot listen on port {self._port} of {self._host} ($MASTER_ADDR, $MASTER_PORT): "
                f"{' '.join(str(error).split()):.300}"
            ) from error

    def _why_silent(self) -> str | None:
        """Why nobody answers at the port; None where somebody does. Torch would print a trace at each try."""
        try:
            with socket.create_connection((self._host, self._port), timeout=FIRST_WORD_S):
                return None
        except OSError as error:
            return error.strerror or str(error)

    def _connect(self) -> Any:
        stores: list[Any] = []

        def connect() -> None:
            with contextlib.suppress(c10d.DistError, RuntimeError):
                limit = timedelta(seconds=self._timeout_s)
                stores.append(c10d.TCPStore(self._host, self._port, self.size, False, limit, wait_for_workers=False))

        # on a thread: what is no store may take the connection, and then say nothing
        thread = threading.Thread(target=connect, name="meeting", daemon=True)
        thread.start()
        thread.join(ANSWER_WITHIN_S)
        if not stores:
            raise TopologyError(
                f"what answers at {self._place} ($MASTER_ADDR, $MASTER_PORT) is not this run's rank 0: the port is in "
                f"use by another program; {ANOTHER_PORT}"
            )
        return stores[0]

    def _register(self, store: Any) -> None:
        """Take this rank's place, without touching that of another run.

        Raises:
            TopologyError: It is taken, or ranks of another run meet here.
        """
        own = f"{socket.gethostname()}:{os.getpid()} {secrets.token_hex(4)}"
        run = " ".join(f"{name}={os.environ[name]}" for name in SAME_RUN if name in os.environ)
        met = _first(store, RUN, run)
        if met != run:
            raise TopologyError(f"another run meets at {self._place}: it has {met}, this one {run}; {ANOTHER_PORT}")
        there = _first(store, _key(self.rank), own)
        if there != own:
            raise TopologyError(
                f"rank {self.rank} is already at {self._place}, as {there.split()[0]}: another run meets there, or "
                f"this rank was started twice; {ANOTHER_PORT}"
            )

    def _wait(self, what: str, *, is_said: bool = True) -> None:
        """Wait a moment, and now and then say for what.

        Raises:
            RankLostError: The time is over.
        """
        now = time.monotonic()
        waited = now - self._started
        if waited > self._timeout_s:
            raise RankLostError(
                f"rank {self.rank}: waited {waited:.0f} s (collective_timeout_s) for {what}; is $WORLD_SIZE right, and "
                "do all hosts reach each other? Start the same command again"
            )
        due = waited >= FIRST_WORD_S if self._said_at is None else now - self._said_at >= SAY_EVERY_S
        if is_said and due:
            self._said_at = now
            print(f"rank {self.rank}: waiting for {what}", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY_S * (1 if self.rank == 0 else max(1.0, self.size / RANKS_AT_ONCE)))


def _key(rank: int) -> str:
    return f"ted_ds/rank_{rank}"


def _first(store: Any, key: str, value: str) -> str:
    """The value that whoever came first has set."""
    return store.compare_set(key, "", value).decode()
