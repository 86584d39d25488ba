"""Seeds, and the state of the random number generators."""

from __future__ import annotations

import base64
import contextlib
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor


def seed_everything(seed: int, *, phase: str, rank: int = 0) -> None:
    """Seed Python, numpy and torch from (seed, phase, rank).

    The same on every rank (``rank=0``) while modules are built; different per rank while dropout draws.
    """
    mixed = zlib.crc32(f"{seed} {phase} {rank}".encode())
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def random_state() -> dict[str, Any]:
    """Where this rank's generators are (Python, numpy, torch, and the device's), as JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _encoded(torch.get_rng_state()),
        "device": _encoded(_accelerator().get_rng_state()) if _has_generator() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where :func:`random_state` found them."""
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decoded(state["torch"]))
    if state["device"] is not None and _has_generator():
        _accelerator().set_rng_state(_decoded(state["device"]))


@contextlib.contextmanager
def undisturbed(*, on_device: bool = True) -> Iterator[None]:
    """Put this rank's generators back where they were, whatever is drawn in the block.

    That of a device is asked for only where one was taken: else each rank would begin on the first.
    """
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    of_device = _accelerator().get_rng_state() if on_device and _has_generator() else None
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_device is not None:
            _accelerator().set_rng_state(of_device)


def _accelerator() -> Any:
    return get_accelerator()


def _has_generator() -> bool:
    return _accelerator().device_name() != "cpu"  # there it is torch's own


def _encoded(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
