"""Ranks of a benchmark: processes that take orders, one line each, and answer each with one line of JSON."""

from __future__ import annotations

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


class Ranks:
    """``python -m module arguments`` as so many ranks, each with one thread."""

    def __init__(self, module: str, arguments: Sequence[str], count: int, *, one_core_each: bool = False) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        cores = sorted(os.sched_getaffinity(0))
        self._processes = []
        for rank in range(count):
            command = [sys.executable, "-m", module, *arguments]
            if one_core_each:
                command = ["taskset", "-c", str(cores[rank]), *command]
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
            self._processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )

    def ask(self, order: str) -> list[Any]:
        """The answer of every rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{order}\n")
        deadline = time.monotonic() + TIMEOUT_S
        return [self._answer(process, deadline) for process in self._processes]

    def _answer(self, process: subprocess.Popen[str], deadline: float) -> Any:
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while ready.select(max(deadline - time.monotonic(), 0)):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"a rank ended with {process.wait()}")
                try:
                    return json.loads(line)
                except ValueError:
                    continue  # what DeepSpeed prints
        raise RuntimeError(f"a rank gave no answer in {TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()


def answer_orders(work: Callable[[str], Any]) -> None:
    """On a rank: answer each line of input."""
    for line in sys.stdin:
        print(json.dumps(work(line.strip())), flush=True)
