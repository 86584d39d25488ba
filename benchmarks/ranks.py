"""Ranks of a benchmark: processes that take orders, one line each, and answer each with one line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

TIMEOUT_S = 600.0
PIPE_BYTES = 65_536


class Ranks:
    """``python -m module arguments`` as so many ranks, each with one thread."""

    def __init__(
        self, module: str, arguments: Sequence[str], count: int, *, one_core_each: bool = False, first_core: int = 0
    ) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        cores = sorted(os.sched_getaffinity(0))
        self._processes = []
        for rank in range(count):
            command = [sys.executable, "-m", module, *arguments]
            if one_core_each:
                command = ["taskset", "-c", str(cores[first_core + rank]), *command]
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
            self._processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            )
        self._unread = [b""] * count

    def ask(self, order: str) -> list[Any]:
        """The answer of every rank."""
        self.tell(order)
        return self.answers()

    def tell(self, order: str) -> None:
        """Give an order to every rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{order}\n".encode())

    def answers(self) -> list[Any]:
        """What every rank answers to an order it was given."""
        deadline = time.monotonic() + TIMEOUT_S
        return [self._answer(rank, deadline) for rank in range(len(self._processes))]

    def _answer(self, rank: int, deadline: float) -> Any:
        process = self._processes[rank]
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while True:
                line, end, rest = self._unread[rank].partition(b"\n")
                if end:
                    self._unread[rank] = rest
                    with contextlib.suppress(ValueError):  # what DeepSpeed prints
                        return json.loads(line)
                elif ready.select(max(deadline - time.monotonic(), 0)):
                    more = process.stdout.read(PIPE_BYTES)
                    if not more:
                        raise RuntimeError(f"a rank ended with {process.wait()}")
                    self._unread[rank] += more
                else:
                    raise RuntimeError(f"a rank gave no answer in {TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(TIMEOUT_S)


def answer_orders(work: Callable[[str], Any]) -> None:
    """On a rank: answer each line of input."""
    for line in sys.stdin:
        print(json.dumps(work(line.strip())), flush=True)
