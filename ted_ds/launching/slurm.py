"""A run that is a Slurm job: what to do when it was stopped in the middle."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping

SCONTROL_TIMEOUT_S = 60.0
WAIT_FOR_SLURM_S = 900.0
"""For the end that was announced: longer than any usual GraceTime or KillWait."""


def job_id(environment: Mapping[str, str]) -> str:
    """What names this job alone: the number of an array's last task is that of the whole array."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def num_restarts(environment: Mapping[str, str]) -> int:
    """How often this job was put back into the queue."""
    return int(environment.get("SLURM_RESTART_COUNT", "0"))


def requeue(restarts: int, say: Callable[[str], None]) -> None:
    """Put this job back into the queue, unless that was done often enough; Slurm then ends this process."""
    job, count = job_id(os.environ), num_restarts(os.environ)
    if count >= restarts:
        say(f"given up after {count} restarts of the job")
        return
    say(f"requeue job {job}, restart {count + 1} of at most {restarts}")
    try:
        subprocess.run(  # noqa: S603 - no shell
            ["scontrol", "requeue", job],  # noqa: S607 - wherever Slurm is installed
            check=True,
            timeout=SCONTROL_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        say(f"the job cannot be requeued ({error}); submit it again to go on")
        return
    time.sleep(SCONTROL_TIMEOUT_S)


def wait_for_slurm(requests: Callable[[], int], say: Callable[[str], None]) -> None:
    """Stay until Slurm ends this process: a job that leaves by itself while it is preempted counts as done.

    Slurm requeues a job that is preempted, and one that is cancelled shall stay so: neither is done here. Another
    request ends the wait.
    """
    say("stopped by Slurm's SIGTERM: it was preempted, and Slurm requeues it, or cancelled")
    before, until = requests(), time.monotonic() + WAIT_FOR_SLURM_S
    while time.monotonic() < until and requests() == before:
        time.sleep(0.5)
