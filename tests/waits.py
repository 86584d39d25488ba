"""Where the host would wait for a device: what a GPU computes is then at an end before anything else is asked of it.

On a GPU torch itself says so (``torch.cuda.set_sync_debug_mode``). On a CPU the operations are counted whose result's
shape or Python value hangs on numbers: they are those for which a GPU makes the host wait.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device import DEVICE, IS_CPU

ON_NUMBERS = {
    "aten::_local_scalar_dense",  # item, and whatever asks whether a tensor is true
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::bincount",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::unique_dim",
}
SAID_BY_TORCH = "called a synchronizing CUDA operation"
OURS = ("ted_ds", "transformers", "deepspeed")


class _Watch(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1] if one is not None
        )
        repeats = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in ON_NUMBERS or by_mask or repeats:
            self._found.append(f"{_place()}: {name}")
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost line of ours, or of transformers', that is at work."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        if any(one in parts for one in OURS):
            return f"{'/'.join(parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def _tolist_is_seen(found: list[str]) -> Iterator[None]:
    """Lists are made of a tensor's memory, past what a mode sees."""
    plain = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        found.append(f"{_place()}: tolist")
        return plain(self)

    Tensor.tolist = tolist  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.tolist = plain  # type: ignore[method-assign]


def waits_of(work: Callable[[], object]) -> list[str]:
    """Each time that ``work`` makes the host wait, with the place where it does."""
    found: list[str] = []
    if IS_CPU:
        with _Watch(found), _tolist_is_seen(found):
            work()
        return found
    torch.cuda.synchronize(DEVICE)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return [
        f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in said if SAID_BY_TORCH in str(one.message)
    ]
