"""DeepSpeed's ``initialize``, whose refusals are the user's to mend: one message, whatever it raises and wherever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import distributed as dist

from ted_ds.errors import ConfigError, TedError
from ted_ds.runtime.device_faults import OF_DEVICES, is_device_fault
from ted_ds.runtime.world import is_lost_rank

NOT_OF_THE_CONFIG = (TedError, torch.OutOfMemoryError, dist.DistError, MemoryError, *OF_DEVICES)
"""A device that is full or broken, and the network: they keep their own verdict."""
AGREEMENT_TIMEOUT = timedelta(seconds=10)
MOST_SHOWN = 600
"""Characters of DeepSpeed's own words."""


def initialize(source: str, **arguments: Any) -> Any:
    """The engine that ``deepspeed.initialize(**arguments)`` gives.

    Args:
        source: Where its config comes from, for messages.
        arguments: DeepSpeed's.

    Raises:
        ConfigError: DeepSpeed refuses; with its own words, and agreed where every rank says the same.
    """
    with refusals(source):
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


@contextlib.contextmanager
def refusals(source: str) -> Iterator[None]:
    """What DeepSpeed raises in the block is the user's to mend, unless a device or the network is at fault.

    Raises:
        ConfigError: It refuses.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NOT_OF_THE_CONFIG) or is_lost_rank(error) or is_device_fault(error):
            raise
        words = " ".join(str(error).split()) or "no reason given"
        said = words if len(words) <= MOST_SHOWN else f"{words[:MOST_SHOWN]} ..."
        refusal = ConfigError(
            f"the DeepSpeed JSON {source}: DeepSpeed does not start with it: {type(error).__name__}: {said}; change "
            "what it asks for, or remove it"
        )
        refusal.agreed = _all_say(str(refusal))
        raise refusal from error


def _all_say(text: str) -> bool:
    """Whether every rank is here with this text, within seconds.

    By the store alone: the others may still wait for this rank inside a collective of DeepSpeed's.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore("refused", dist.distributed_c10d._get_default_store())
    try:
        store.set(str(rank), text)
        store.wait([str(other) for other in range(size)], AGREEMENT_TIMEOUT)
        unanimous = all(store.get(str(other)) == text.encode() for other in range(size))
        store.set(f"read {rank}", "")
        if rank == 0:  # the store ends with it
            store.wait([f"read {other}" for other in range(size)], AGREEMENT_TIMEOUT)
    except RuntimeError:  # some rank is not here: each that is prints its own
        return False
    return unanimous
