"""Start real runs in real processes: as a user does, or forked where how they start is not what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.dist import free_port
from tests.runs import Run

BIN = Path(sys.executable).parent
TIMEOUT_S = 240


class Outcome(NamedTuple):
    code: int
    output: str
    seconds: float


def environment(**changes: str) -> dict[str, str]:
    """The tests' environment, without what a launcher sets, or W&B's service of a test in this process."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_SERVICE")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    return {**kept, "PATH": f"{BIN}:{os.environ['PATH']}", **changes}


def deepspeed(*arguments: str, num_ranks: int = 2, **variables: str) -> Outcome:
    """``deepspeed --num_gpus N --module ted_ds ...``."""
    command = [str(BIN / "deepspeed"), "--num_gpus", str(num_ranks), "--master_port", str(free_port())]
    return _finish([*command, "--module", "ted_ds", *arguments], **variables)


def alone(*arguments: str, **variables: str) -> Outcome:
    """``python -m ted_ds ...`` without a launcher."""
    return _finish([sys.executable, "-m", "ted_ds", *arguments], **variables)


def forked(*arguments: str, num_ranks: int = 1) -> Outcome:
    """``ted-ds ...`` on some ranks, started in a moment; all must end alike."""
    outcomes = forked_ranks(num_ranks, arguments)
    output = "".join(outcome.output for outcome in outcomes)
    assert len({outcome.code for outcome in outcomes}) == 1, output
    return Outcome(outcomes[0].code, output, outcomes[0].seconds)


def forked_ranks(count: int, arguments: Sequence[str]) -> list[Outcome]:
    """The same, of each rank."""
    started = time.monotonic()
    run = Run(arguments, num_ranks=count)
    codes = run.wait(TIMEOUT_S)
    seconds = time.monotonic() - started
    found = [Outcome(-1 if code is None else code, run.output(rank), seconds) for rank, code in enumerate(codes)]
    assert None not in codes, "".join(outcome.output for outcome in found)
    return found


def by_torch(rank: int, count: int, port: str) -> dict[str, str]:
    """What ``deepspeed`` and ``torchrun`` tell a rank."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    return {**own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def by_srun(rank: int, count: int, job: str) -> dict[str, str]:
    """What ``srun`` tells a task."""
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": str(count)}
    return {**own, "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": job, "SLURM_STEP_ID": "0"}


def by_mpirun(rank: int, count: int, job: str) -> dict[str, str]:
    """What OpenMPI's ``mpirun`` tells a process."""
    whole = {"RANK": str(rank), "LOCAL_RANK": str(rank), "SIZE": str(count), "LOCAL_SIZE": str(count)}
    return {**{f"OMPI_COMM_WORLD_{name}": value for name, value in whole.items()}, "PMIX_NAMESPACE": job}


def ranks(
    count: int, arguments: Sequence[str], *, told: Callable[[int, int, str], dict[str, str]] = by_torch
) -> list[Outcome]:
    """One process a rank, as a launcher starts them, but each one's exit code is seen; ``told`` are its variables."""
    port, started = str(free_port()), time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ted_ds", *arguments],
            env=environment(**told(rank, count, port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    seconds = time.monotonic() - started
    return [Outcome(p.returncode, output, seconds) for p, output in zip(processes, outputs, strict=True)]


def _finish(command: list[str], **variables: str) -> Outcome:
    started = time.monotonic()
    done = subprocess.run(
        command,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Outcome(done.returncode, done.stdout, time.monotonic() - started)
