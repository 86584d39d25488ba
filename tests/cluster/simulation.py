"""A cluster on this machine: hosts in namespaces of their own with sshd, and a real Slurm on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.tiny import ROOT

HERE = ROOT / "tests" / "cluster"
BIN = Path(sys.executable).parent
PROGRAMS = ("unshare", "nsenter", "ip", "/usr/sbin/sshd", "ssh", "ssh-keygen", "pdsh")
SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
PACKAGES = "openssh-server openssh-client pdsh munge slurmctld slurmd slurm-client openmpi-bin"
TOLD = ("DS_", "OMP_", "HF_", "TOKENIZERS_", "WANDB_", "PYTHONWARNINGS")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """Why there can be no cluster on this machine."""
    if os.geteuid() != 0:
        return "they need root, for namespaces"
    missing = [name for name in (*PROGRAMS, *SLURM_PROGRAMS) if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"{', '.join(missing)} missing; of Debian: apt-get install --no-install-recommends {PACKAGES}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"this machine gives no namespaces: {tried.stderr.strip()}"


class Cluster:
    """Hosts ``login``, ``node1``, ``node2``, ... that share all files but /run and /dev/shm."""

    def __init__(self, state: Path, num_nodes: int) -> None:
        self.state, self.num_nodes = state, num_nodes
        self._environment = {
            "PATH": SYSTEM_PATH,
            "CLUSTER_STATE": str(state),
            "CLUSTER_NODES": str(num_nodes),
            "NODE_CPUS": "2",
            "HOST_PATH": f"{BIN}:{SYSTEM_PATH}",
        }

    def up(self) -> None:
        """Boot the hosts, and Slurm."""
        self._script("hosts.sh", "down")
        shutil.rmtree(self.state, ignore_errors=True)
        self._script("slurm.sh")
        self._script("hosts.sh", "up")
        self._script("slurm.sh", "wait")

    def down(self) -> None:
        """End all of them."""
        self._script("hosts.sh", "down")

    def power(self, action: str, host: str) -> None:
        """``kill``, ``boot``, ``cut``, ``mute`` or ``join`` a host."""
        self._script("hosts.sh", action, host)

    def reset(self) -> None:
        """Boot what is down, join what is apart, cancel all jobs, kill all else."""
        self.run("login", ["scancel", "--user=root"])
        for number in range(1, self.num_nodes + 1):
            host = f"node{number}"
            if f"{host} up" not in self._script("hosts.sh", "status"):
                self.power("boot", host)
            self._script("hosts.sh", "join", host)
            self.run(host, ["pkill", "-9", "-f", "[-]m ted_ds|ted-ds"])
        deadline = time.monotonic() + 30
        while self.run("login", ["squeue", "--noheader"]).stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.5)
        self.run("login", ["scontrol", "update", f"nodename=node[1-{self.num_nodes}]", "state=resume"])
        self._script("slurm.sh", "wait")

    def run(self, host: str, command: Sequence[str], *, timeout_s: float = 60.0, **variables: str):
        """Run a command on a host, from the repository's root."""
        return subprocess.run(
            self._on(host, command, variables),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def start(self, host: str, command: Sequence[str], output: Path, **variables: str) -> subprocess.Popen:
        """Start a command on a host."""
        with output.open("w") as file:
            return subprocess.Popen(
                self._on(host, command, variables), env=self._environment, stdout=file, stderr=subprocess.STDOUT
            )

    def kill(self, host: str, number: str, process: int) -> None:
        """Send a signal to a process of a host, by its number there."""
        done = self.run(host, ["kill", f"-{number}", str(process)])
        assert done.returncode == 0, done.stderr

    def _on(self, host: str, command: Sequence[str], variables: dict[str, str]) -> list[str]:
        told = {name: value for name, value in os.environ.items() if name.startswith(TOLD)}
        told |= {"TED_DS_VENV": str(BIN.parent), "PYTHONPATH": str(ROOT), **variables}
        words = [f"{name}={value}" for name, value in told.items()]
        return ["bash", str(HERE / "hosts.sh"), "exec", host, "env", f"--chdir={ROOT}", *words, *command]

    def _script(self, name: str, *words: str) -> str:
        done = subprocess.run(
            ["bash", str(HERE / name), *words], env=self._environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, f"{name} {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout
