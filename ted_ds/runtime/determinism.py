"""Seeds."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def seed_everything(seed: int, *, phase: str, rank: int = 0) -> None:
    """Seed Python, numpy and torch from (seed, phase, rank).

    The same on every rank (``rank=0``) while modules are built; different per rank while dropout draws.
    """
    mixed = zlib.crc32(f"{seed} {phase} {rank}".encode())
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
