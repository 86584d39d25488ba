"""Which rank this process is, of how many, and where they meet: read from what the launcher left in the environment.

Torch's own variables are what ``deepspeed`` and ``torchrun`` set. ``srun`` and OpenMPI's ``mpirun`` start one task for
each rank and speak another language, which is translated here. Without any of them, a process is alone.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import zlib
from collections.abc import Mapping

import psutil

from ted_ds.errors import TopologyError
from ted_ds.launching.starters import FIRST_PORT, MPIRUN, NUM_PORTS, SRUN, TASK_STARTERS, TORCH, Starter

ASK_SLURM_TIMEOUT_S = 30.0
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


UNTRANSLATED = ("PMI_SIZE",)
"""Set by other MPI launchers, whose tasks would each train alone."""


def find_ranks() -> None:
    """Put into the environment what torch reads from it, whichever launcher started this process.

    Raises:
        TopologyError: The launcher's variables are missing or contradict each other, or no network interface leads to
            the other hosts.
    """
    os.environ.update(rendezvous_variables(os.environ))
    os.environ.update(network_variables(os.environ))


def rendezvous_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Torch's variables, as this process should have them.

    Args:
        environment: Of this process.

    Returns:
        ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``; nothing for a process that is
        alone.

    Raises:
        TopologyError: Variables are missing or contradict each other; the message names them.
    """
    starter = next((one for one in TASK_STARTERS if _number(environment, one.size, 1) > 1), None)
    if "RANK" in environment:
        return _by_torch(environment, starter)
    if starter is not None:
        return _by_starter(environment, starter)
    for name in ("WORLD_SIZE", *UNTRANSLATED):
        if _number(environment, name, 1) > 1:
            raise TopologyError(
                f"${name} is {environment[name]}, but $RANK is not set: each task would train alone and write the same "
                "output; start with deepspeed, torchrun, srun or OpenMPI's mpirun, or set $RANK, $WORLD_SIZE, "
                "$LOCAL_RANK, $MASTER_ADDR and $MASTER_PORT"
            )
    return {}


def _by_torch(environment: Mapping[str, str], starter: Starter | None) -> dict[str, str]:
    size = _number(environment, "WORLD_SIZE")
    rank = _number(environment, "RANK")
    if rank >= size:
        raise TopologyError(f"$RANK is {rank}, but $WORLD_SIZE is {size}: ranks are counted from 0; set them anew")
    local_rank = _number(environment, "LOCAL_RANK", 0 if size == 1 else None)
    if local_rank > rank:
        raise TopologyError(f"$LOCAL_RANK is {local_rank}, but $RANK is {rank}: it counts the ranks of this host alone")
    if starter is not None:
        tasks, task = _number(environment, starter.size), _number(environment, starter.rank)
        if size % tasks:  # as many of them on each task at least
            raise TopologyError(
                f"$WORLD_SIZE is {size}, but {starter.command} started {tasks} tasks (${starter.size}): some ranks "
                f"would be there several times; let {starter.command} start one launcher on each host, or none"
            )
        if size == tasks and rank != task:
            raise TopologyError(
                f"$RANK is {rank}, but this is task {task} of {starter.command} (${starter.rank}): the variable was "
                "exported for all tasks; unset it"
            )
    names = ("MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in environment]
    if missing:
        raise TopologyError(f"$RANK is set, but ${missing[0]} is not: set it to where rank 0 is met")
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        **{name: environment[name] for name in names},
    }


def _by_starter(environment: Mapping[str, str], starter: Starter) -> dict[str, str]:
    size, rank = _number(environment, starter.size), _number(environment, starter.rank)
    for name, value in (("WORLD_SIZE", size), ("LOCAL_RANK", _number(environment, starter.local_rank))):
        if _number(environment, name, value) != value:
            raise TopologyError(
                f"${name} is {environment[name]}, but {starter.command} says {value}: it was exported for all tasks; "
                "unset it"
            )
    address = environment.get("MASTER_ADDR") or _first_host(environment, starter)
    port = environment.get("MASTER_PORT") or str(_port(environment, starter))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": environment[starter.local_rank],
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


def _first_host(environment: Mapping[str, str], starter: Starter) -> str:
    if starter is MPIRUN:
        if environment.get(starter.local_size) == environment[starter.size]:
            return "127.0.0.1"
        raise TopologyError(
            "$MASTER_ADDR is not set, and mpirun does not tell the other hosts where rank 0 is: add "
            "-x MASTER_ADDR=HOST -x MASTER_PORT=PORT"
        )
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    if re.fullmatch(r"[\w.-]+", hosts):
        return hosts
    try:
        done = subprocess.run(  # noqa: S603 - one word, and no shell
            ["scontrol", "show", "hostnames", hosts],  # noqa: S607 - wherever Slurm is installed
            capture_output=True,
            text=True,
            check=True,
            timeout=ASK_SLURM_TIMEOUT_S,
        )
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise TopologyError(
            f"$MASTER_ADDR is not set, and scontrol does not read $SLURM_STEP_NODELIST ({hosts!r}) here ({error}); "
            "set it to the first host of the job"
        ) from error


def _port(environment: Mapping[str, str], starter: Starter) -> int:
    """The same for all tasks, and another for each job step that may share the host."""
    if starter is SRUN:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    else:
        names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")
    job = " ".join(environment.get(name, "") for name in names)
    return FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name)
    if value is None:
        if default is None:
            raise TopologyError(f"${name} is not set, though other variables of a launcher are; set it")
        return default
    if not value.isdecimal():
        raise TopologyError(f"${name} is {value!r}: must be a whole number, 0 or more")
    return int(value)


# --- the network ------------------------------------------------------------------------------------------------------


def network_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The interface for messages between hosts, where gloo would take one that no other host reaches.

    It takes the one that the host's own name leads to: on Debian that is 127.0.1.1, and ranks would wait for each
    other.

    Args:
        environment: Of this process, with what :func:`rendezvous_variables` says.

    Raises:
        TopologyError: The interface that was chosen by hand is not here, or it cannot be told which one to take.
    """
    addresses = _addresses()
    chosen = environment.get(GLOO_INTERFACE)
    if chosen is not None:
        if chosen not in addresses:
            raise TopologyError(f"${GLOO_INTERFACE} is {chosen}, but this host has {', '.join(addresses)}; choose one")
        return {}
    if _is_one_host(environment) or not _is_loopback(_address_of(socket.gethostname())):
        return {}
    own = _address_towards(environment["MASTER_ADDR"])
    outward = [name for name, of_one in addresses.items() if not all(map(_is_loopback, of_one))]
    found = [name for name in outward if own in addresses[name]] or outward  # rank 0's host leads to itself
    if len(found) != 1:
        raise TopologyError(
            f"this host's name leads to itself alone, and it has {len(found)} other network interfaces "
            f"({', '.join(found) or 'none'}); set ${GLOO_INTERFACE} to the one the other hosts reach"
        )
    return {GLOO_INTERFACE: found[0]}


def _is_one_host(environment: Mapping[str, str]) -> bool:
    size = environment.get("WORLD_SIZE", "1")
    local_sizes = ("LOCAL_SIZE", TORCH.local_size, MPIRUN.local_size)  # of deepspeed, torchrun, mpirun
    return (
        size == "1"
        or any(environment.get(name) == size for name in local_sizes)
        or environment.get("SLURM_STEP_NUM_NODES") == "1"
        or environment["MASTER_ADDR"] in ("127.0.0.1", "localhost")
    )


def _addresses() -> dict[str, list[str]]:
    """The IPv4 addresses of each interface."""
    found = {
        name: [one.address for one in of_one if one.family == socket.AF_INET]
        for name, of_one in psutil.net_if_addrs().items()
    }
    return {name: of_one for name, of_one in found.items() if of_one}


def _address_of(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _address_towards(host: str) -> str | None:
    """This host's own address on the way to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError:
            return None
        return probe.getsockname()[0]


def _is_loopback(address: str | None) -> bool:
    return address is None or address.startswith("127.")
