"""A run in a process that somebody else works in, such as a notebook's: it leaves it as it found it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import deepspeed.comm
import torch.distributed as dist

from ted_ds.errors import RankLostError
from ted_ds.runtime.arithmetic import remember_arithmetic
from ted_ds.runtime.determinism import undisturbed
from ted_ds.runtime.meeting import forget_meeting


@contextlib.contextmanager
def visiting() -> Iterator[None]:
    """Put back, once the block is left, what a run changes of its process.

    These are variables of the environment, random number generators (but a GPU's), how exactly torch computes, and the
    group of ranks, unless there was one before. Where a rank was lost, the group stays: to end it may be to wait for
    that rank.
    """
    environment = dict(os.environ)
    put_back_arithmetic = remember_arithmetic()
    had_group, is_whole = dist.is_initialized(), True
    try:
        with undisturbed(on_device=False):
            yield
    except RankLostError:
        is_whole = False
        raise
    finally:
        if dist.is_initialized() and not had_group and is_whole:
            _end_group()
        put_back_arithmetic()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _end_group() -> None:
    is_alone = dist.get_world_size() == 1
    # DeepSpeed keeps groups of its own within, once it has begun
    end = deepspeed.comm.destroy_process_group if deepspeed.comm.is_initialized() else dist.destroy_process_group
    end()
    if is_alone:  # the next run meets at a port of its own
        forget_meeting()
