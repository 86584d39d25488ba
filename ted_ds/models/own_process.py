"""Ask what needs torch in a process of its own, from one that has none: a module of ours that answers in JSON."""

from __future__ import annotations

import json
import os
import subprocess  # nosec - it starts this very package
import sys
from typing import Any

from ted_ds.errors import CheckpointError

OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def ask(module: str, request: str, *, doing: str, limit_s: float) -> Any:
    """The last line that ``python -m MODULE`` prints, read as JSON.

    Args:
        module: Reads the request from its standard input. It is no rank, and sees no GPU.
        request: What it is asked.
        doing: What it does, for messages.
        limit_s: Seconds it may take.

    Raises:
        CheckpointError: It takes longer, or gives no answer.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command, input=request, capture_output=True, text=True, timeout=limit_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        why = f"{doing} took longer than {limit_s:g} s; start again, with less to do on this machine"
        raise CheckpointError(why) from error
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        last = " ".join(done.stderr.split())[-300:]
        raise CheckpointError(f"{doing} ended with code {done.returncode} ({module}): {last}") from error
