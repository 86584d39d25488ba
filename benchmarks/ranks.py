"""Ranks of a benchmark: processes that take orders, and answer each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

TIMEOUT_S = 600.0
LOOK_EVERY_S = 5.0


class Orders:
    """On a rank: where its orders come from."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._parent = connection, os.getppid()

    def answer(self, work: Callable[[str], Any]) -> None:
        """Do what is asked for, until nobody is left to ask."""
        while os.getppid() == self._parent:
            if self._connection.poll(LOOK_EVERY_S):
                self._connection.send(work(self._connection.recv()))


class Ranks:
    """Copies of this process that are ranks of one world, each with one thread.

    What was imported is theirs, too, which saves most of their start. So make them first: a process that has computed
    with several threads, or on a GPU, cannot be copied.
    """

    def __init__(
        self,
        work: Callable[..., None],
        arguments: tuple[Any, ...],
        count: int,
        *,
        one_core_each: bool = False,
        first_core: int = 0,
    ) -> None:
        """Start ``work(*arguments, orders)`` so many times."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        cores = sorted(os.sched_getaffinity(0))
        copies = multiprocessing.get_context("fork")
        self._processes, self._connections = [], []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            core = cores[first_core + rank] if one_core_each else None
            own, theirs = copies.Pipe()
            process = copies.Process(target=_be_a_rank, args=(place, core, work, arguments, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            self._processes.append(process)
            self._connections.append(own)

    def ask(self, order: str) -> list[Any]:
        """The answer of every rank."""
        self.tell(order)
        return self.answers()

    def tell(self, order: str) -> None:
        """Give an order to every rank."""
        for connection in self._connections:
            connection.send(order)

    def answers(self) -> list[Any]:
        """What every rank answers to an order it was given."""
        deadline = time.monotonic() + TIMEOUT_S
        return [self._answer(rank, deadline) for rank in range(len(self._processes))]

    def _answer(self, rank: int, deadline: float) -> Any:
        if not self._connections[rank].poll(max(deadline - time.monotonic(), 0)):
            raise RuntimeError(f"rank {rank} gave no answer in {TIMEOUT_S:.0f} s")
        try:
            return self._connections[rank].recv()
        except EOFError:
            self._processes[rank].join(TIMEOUT_S)
            raise RuntimeError(f"rank {rank} ended with {self._processes[rank].exitcode}") from None

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(TIMEOUT_S)


def _be_a_rank(
    place: dict[str, int], core: int | None, work: Callable[..., None], arguments: tuple[Any, ...], theirs: Connection
) -> None:
    os.environ.update({name: str(value) for name, value in place.items()})
    if core is not None:
        os.sched_setaffinity(0, [core])
    torch.set_num_threads(1)
    sys.stdout.flush()
    os.dup2(2, 1)  # what DeepSpeed prints is no part of the report
    work(*arguments, Orders(theirs))
