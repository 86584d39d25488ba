"""DeepSpeed's ``initialize``, whose refusals are the user's to mend: one message, whatever it raises and wherever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from torch import distributed as dist

from ted_ds.config.deepspeed_keys import OFFLOAD_PARTS, offload_device
from ted_ds.errors import ConfigError, TedError, TopologyError
from ted_ds.output.chatter import aside
from ted_ds.runtime.device_faults import OF_DEVICES, is_device_fault
from ted_ds.runtime.world import is_lost_rank

NOT_OF_THE_CONFIG = (TedError, torch.OutOfMemoryError, dist.DistError, MemoryError, *OF_DEVICES)
"""A device that is full or broken, and the network: they keep their own verdict."""
AGREEMENT_TIMEOUT = timedelta(seconds=10)
MOST_SHOWN = 600
"""Characters of DeepSpeed's own words."""


def check_config(source: str, config: Mapping[str, Any], num_replicas: int) -> None:
    """Let DeepSpeed read a completed config, before there is anything to lose. It waits for no other rank.

    Raises:
        ConfigError: It refuses.
        TopologyError: It wants a disk that cannot be used beside other work.
    """
    ranks = SimpleNamespace(get_data_parallel_world_size=lambda: num_replicas)
    with refusals(source):
        DeepSpeedConfig(dict(config), mpu=ranks)
    for part in OFFLOAD_PARTS:
        if offload_device(config, part) == "nvme":
            refuse_without_async_io(f"{source}: zero_optimization.{part}.device: nvme", "cpu")


def refuse_without_async_io(wanted_by: str, instead: str) -> None:
    """Make sure that DeepSpeed can read and write a disk beside other work.

    Raises:
        TopologyError: It cannot.
    """
    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder("AsyncIOBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        raise TopologyError(
            f"{wanted_by} needs DeepSpeed's async_io, which cannot be built here: install libaio with its headers "
            f"(libaio-dev), or use {instead}"
        )


def initialize(source: str, **arguments: Any) -> Any:
    """The engine that ``deepspeed.initialize(**arguments)`` gives.

    Args:
        source: Where its config comes from, for messages.
        arguments: DeepSpeed's.

    Raises:
        ConfigError: DeepSpeed refuses; with its own words, and agreed where every rank says the same.
    """
    try:
        with refusals(source), aside():
            engine, *_ = deepspeed.initialize(**arguments)
    except ConfigError as refusal:
        refusal.agreed = _all_say(str(refusal))
        raise
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
        raise ConfigError(
            f"the DeepSpeed JSON {source}: DeepSpeed does not start with it: {type(error).__name__}: {said}; change "
            "what it asks for, or remove it"
        ) from error


def _all_say(text: str) -> bool:
    """Whether every rank is here with this text, within seconds.

    By the store alone: the others may still wait for this rank inside a collective of DeepSpeed's.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.distributed_c10d._get_default_store()
    said, heard = ([f"ted_ds/refusal/{what}/{other}" for other in range(size)] for what in ("said", "heard"))
    try:
        store.set(said[rank], text)
        store.wait(said, AGREEMENT_TIMEOUT)
        unanimous = all(store.get(key) == text.encode() for key in said)
        store.set(heard[rank], "")
        if rank == 0:  # the store ends with it
            store.wait(heard, AGREEMENT_TIMEOUT)
    except RuntimeError:  # some rank is not here: each that is prints its own
        return False
    return unanimous
