"""Run a function on several ranks: real processes, real gloo, with a bound on every wait.

Processes are forked from a server that has the heavy imports, so that a group of ranks starts in under a second.
The function must be importable (a module's top level), and its result picklable.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import multiprocessing
import os
import pickle
import queue
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tests.device import IS_CPU, share_gpus

TIMEOUT_S = 240.0
START = "TED_DS_TESTS_START"
"""The variable that says ``fork`` where this process itself is to be what ranks are copies of (``tests/mutants``)."""
# a process that has looked at a GPU cannot be copied
CONTEXT: Any = multiprocessing.get_context(os.environ.get(START, "forkserver" if IS_CPU else "spawn"))
PORTS_OF_A_PROCESS = 500
FIRST_PORTS = range(15_000, 32_000, PORTS_OF_A_PROCESS)  # below those that Linux gives away by itself
CONTEXT.set_forkserver_preload(
    [
        "ted_ds.verbs.run",
        "wandb",
        "wandb.sdk.launch",  # which each run that is recorded imports as it begins
        "sklearn.metrics",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # with a large part of torch, at the start of each engine
        "transformers.models.auto",
        "transformers.models.llama.modeling_llama",
        "deepspeed.module_inject.auto_ep_layer",
        "tests.frozen",  # last
    ]
)


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = TIMEOUT_S, joins: bool = True
) -> list[Any]:
    """``function(world, *arguments)`` on each rank; returns the results in the order of ranks.

    Where nobody ``joins``, the function comes without a world, and finds what a launcher leaves; alone, nothing.

    Raises:
        AssertionError: A rank failed, died, or did not end in time; shows its traceback.
    """
    results: Any = CONTEXT.Queue()
    port = free_port()
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, world_size, port, function, arguments, results, joins), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        return _collect(ranks, results, time.monotonic() + timeout_s)
    finally:
        for process in ranks:
            process.join(2)
            if process.is_alive():
                process.kill()


def free_port() -> int:
    """A port nobody listens on, and that nobody else is given: neither by the system nor by another process's tests."""
    while True:
        port = next(_ports())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this process, again and again: those of a lock that no other process holds, until this one ends."""
    for first in FIRST_PORTS:
        with contextlib.suppress(OSError):  # another user's file
            lock = os.open(f"{tempfile.gettempdir()}/ted_ds_tests_ports_{first}", os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process's
                os.close(lock)
                continue
            return itertools.cycle(range(first, first + PORTS_OF_A_PROCESS))
    raise AssertionError(f"{len(FIRST_PORTS)} processes test on this machine: no ports are left")


def _collect(ranks: list[Any], results: Any, deadline: float) -> list[Any]:
    values: dict[int, Any] = {}
    while len(values) < len(ranks):
        with contextlib.suppress(queue.Empty):
            rank, value, failure = results.get(timeout=0.5)
            assert failure is None, f"rank {rank} failed:\n{failure}"
            values[rank] = pickle.loads(value)
            continue
        dead = [i for i, process in enumerate(ranks) if process.exitcode not in (None, 0) and i not in values]
        assert not dead, f"ranks {dead} died with {[ranks[i].exitcode for i in dead]}"
        assert time.monotonic() < deadline, f"only ranks {sorted(values)} of {len(ranks)} ended in time"
    return [values[rank] for rank in range(len(ranks))]


def _rank(
    rank: int, size: int, port: int, function: Callable[..., Any], arguments: Any, results: Any, joins: bool
) -> None:
    if joins or size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_SIZE=str(size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    warnings.resetwarnings()  # in a copy of pytest's process they are errors
    try:
        import torch

        from ted_ds.runtime.world import World

        share_gpus(size)
        torch.set_num_threads(1)
        value = function(World.join(60), *arguments) if joins else function(*arguments)
        results.put((rank, pickle.dumps(value), None))  # plain bytes: a tensor would be shared with a dead process
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    results.close()
    results.join_thread()
    os._exit(0)  # a normal exit of a process that ran gloo aborts now and then
