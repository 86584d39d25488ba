"""Whether this rank can run the kernels that a recipe wants."""

from __future__ import annotations

import importlib
import os

import torch

from ted_ds.config.environment import is_true
from ted_ds.errors import ConfigError
from ted_ds.planning.kernels import INTERPRET, PLACE


def refuse_kernels(kernels: str, device: torch.device) -> None:
    """Make sure that they work on a device, as far as that shows before the first loss.

    Raises:
        ConfigError: It is no GPU (and Triton does not interpret them), or the package does not work here.
    """
    if kernels == "torch":
        return
    if device.type != "cuda" and not is_true(os.environ, INTERPRET):
        raise ConfigError(f"{PLACE}: {kernels} needs a GPU, and this rank computes on a {device.type}; use torch")
    try:
        importlib.import_module("ted_ds.numerics.triton_rows")
    except Exception as error:  # whatever a half-installed package raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{PLACE}: {kernels} does not work here: {reason}; use torch") from error


def interpreted_kernels(kernels: str) -> str | None:
    """That they are interpreted, in words; None where they are not."""
    if kernels == "torch" or not is_true(os.environ, INTERPRET):
        return None
    return f"{PLACE}: {kernels}: ${INTERPRET} is set: kernels run step by step on a CPU, thousands of times slower"
