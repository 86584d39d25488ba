"""A run that is a Slurm job: what to do when it was stopped in the middle."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

SCONTROL_TIMEOUT_S = 60.0
WAIT_FOR_SLURM_S = 900.0
"""For the end that was announced: longer than any usual GraceTime or KillWait."""


def requeue(restarts: int, say: Callable[[str], None]) -> None:
    """Put this job back into the queue, unless that was done often enough; Slurm then ends this process."""
    job, count = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
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


def wait_for_slurm(say: Callable[[str], None]) -> None:
    """Stay until Slurm ends this process: a job that leaves by itself while it is preempted counts as done.

    Slurm requeues a job that is preempted, and one that is cancelled shall stay so: neither is done here.
    """
    say("stopped by Slurm's SIGTERM: it was preempted, and Slurm requeues it, or cancelled")
    time.sleep(WAIT_FOR_SLURM_S)
