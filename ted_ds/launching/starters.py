"""The launchers that start ranks: the names of their variables, and the ports of runs for which they choose none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Where the ports of runs lie whose launcher gives none: below those that Linux hands out by itself."""

SAME_REQUEST_S = 2.0
"""A launcher, a terminal, a batch system and a wrapper each pass one request on: Ctrl-C reaches a rank from the
terminal as SIGINT, and then from the deepspeed launcher as SIGTERM, twice. Signals that follow the first within this
time are the same request."""


@dataclass(frozen=True)
class Starter:
    """What starts the ranks; the names of its variables."""

    command: str
    rank: str
    size: str
    local_rank: str
    """Which of its host a rank is."""
    local_size: str


TORCH = Starter("deepspeed or torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Whose variables torch itself reads."""
SRUN = Starter("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
MPIRUN = Starter(
    "mpirun",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
TASK_STARTERS = (SRUN, MPIRUN)
"""They start a task for each rank, or for each launcher on a host."""


@dataclass(frozen=True)
class Told:
    """What the variables say before anybody has checked them."""

    rank: int
    num_ranks: int
    local_rank: int

    @classmethod
    def by(cls, environment: Mapping[str, str]) -> Told:
        """Torch's variables count before those of what started its launcher; without any, a process is alone."""
        starters = (TORCH, *TASK_STARTERS)

        def first(names: list[str], default: int) -> int:
            return next((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), default)

        return cls(
            first([one.rank for one in starters], 0),
            first([one.size for one in starters], 1),
            first([one.local_rank for one in starters], 0),
        )
