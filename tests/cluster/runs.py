"""Runs through each launcher, and what they leave."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.launching.records import LOG_DIR, RankRecord, log_file, read_records
from ted_ds.output.phase_folder import file_sha256
from tests.cluster.simulation import Cluster

TIMEOUT_S = 280.0
STARTED = re.compile(r"supervise ([\d:]+): \S+attempt_(\d+): (?:deepspeed|srun)")


@dataclass
class Job:
    """A run that was started, through either launcher."""

    cluster: Cluster
    output: Path
    logs: Path
    process: subprocess.Popen[bytes] | None = None
    """The launcher; None for a Slurm job."""
    number: str = ""
    """Of a Slurm job."""

    def text(self) -> str:
        """What was printed so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Wait until something is printed."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.text())) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in time:\n{self.text()[-4000:]}"
            assert not self.is_over(), f"ended before {pattern!r}:\n{self.text()[-4000:]}"
            time.sleep(0.2)
        return found

    def is_over(self) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        return self.state() in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")

    def state(self) -> str:
        """Of a Slurm job."""
        return self._shown(r"JobState=(\w+)")

    def restarts(self) -> int:
        """Of a Slurm job."""
        return int(self._shown(r"Restarts=(\d+)"))

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over():
            if time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"not over in time:\n{self.text()[-6000:]}")
            time.sleep(0.3)
        if self.process is not None:
            return self.process.returncode
        return int(self._shown(r"ExitCode=(\d+)"))

    def stop(self) -> None:
        """End it by force."""
        if self.process is not None:
            self.process.kill()
        else:
            self.cluster.run("login", ["scancel", self.number])

    def attempts(self) -> list[Path]:
        """Folders of the attempts' logs."""
        return sorted(self.logs.rglob("attempt_*"))

    def records(self, attempt: int = -1) -> list[RankRecord]:
        """Of the ranks of an attempt."""
        return read_records(self.attempts()[attempt])

    def printed(self, rank: int, attempt: int = -1) -> str:
        """What a rank printed."""
        return log_file(self.attempts()[attempt], rank).read_text(errors="replace")

    def _shown(self, pattern: str) -> str:
        for _ in range(5):  # a controller that is busy does not answer
            done = self.cluster.run("login", ["scontrol", "show", "job", self.number])
            found = re.search(pattern, done.stdout)
            if found is not None:
                return found[1]
            time.sleep(2)
        raise AssertionError(f"Slurm does not say {pattern} of job {self.number}: {done.stdout}{done.stderr}")


def local(cluster: Cluster, folder: Path, count: int, arguments: Sequence[str], **variables: str) -> Job:
    """``launchers/local.sh`` on one host."""
    command = ["bash", "launchers/local.sh", "-n", str(count), *arguments]
    return _start(cluster, "node1", folder, command, variables)


def multinode(cluster: Cluster, folder: Path, count: int, arguments: Sequence[str], **variables: str) -> Job:
    """``launchers/multinode.sh`` on so many hosts of one rank each."""
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"node{number} slots=1\n" for number in range(1, count + 1)))
    command = ["bash", "launchers/multinode.sh", str(hostfile), *arguments]
    return _start(cluster, "login", folder, command, variables)


def mpirun(cluster: Cluster, folder: Path, count: int, arguments: Sequence[str]) -> Job:
    """OpenMPI's launcher on two hosts of so many ranks together."""
    slots = f"node1:{count // 2},node2:{count // 2}"
    passed = ("PATH", "PYTHONPATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WANDB_MODE", LOG_DIR)
    words = [word for name in passed for word in ("-x", name)]
    words += ["-x", "MASTER_ADDR=node1", "-x", "MASTER_PORT={port}"]
    command = ["ted-ds", "supervise", "--logs", str(folder / "logs"), "--"]
    command += ["mpirun", "--allow-run-as-root", "--host", slots, *words, "python", "-u", "-m", "ted_ds", *arguments]
    return _start(cluster, "login", folder, command, {})


def _start(cluster: Cluster, host: str, folder: Path, command: Sequence[str], variables: dict[str, str]) -> Job:
    job = Job(cluster, folder / "output", folder / "logs")
    job.process = cluster.start(host, command, job.output, TED_DS_LOGS=str(job.logs), **variables)
    return job


def slurm(
    cluster: Cluster,
    folder: Path,
    count: int,
    arguments: Sequence[str],
    options: Sequence[str] = (),
    **variables: str,
) -> Job:
    """``launchers/slurm.sbatch`` on so many nodes of one rank each."""
    job = Job(cluster, folder / "output", folder / "logs")
    command = ["sbatch", "--parsable", f"--nodes={count}", "--ntasks-per-node=1", "--time=10"]
    command += ["--output", str(job.output), *options, "launchers/slurm.sbatch", *arguments]
    done = cluster.run("login", command, TED_DS_LOGS=str(job.logs), **variables)
    assert done.returncode == 0, done.stderr
    job.number = done.stdout.strip()
    return job


def weights(run: Path) -> dict[str, str]:
    """The hashes of everything a run has trained."""
    files = [run / "export" / "model.safetensors", *sorted(run.glob("filters_*/**/filters.safetensors"))]
    assert len(files) > 1
    return {str(file.relative_to(run)): file_sha256(file) for file in files}
