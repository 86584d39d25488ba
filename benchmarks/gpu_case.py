"""What parts of :mod:`benchmarks.gpu` have in common: where they run, what they find, and how it is counted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import in_use
from benchmarks.report import Claim

PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "B200": 2250, "GH200": 989}
"""Of dense bf16 products, by what a card's name holds (NVIDIA's data sheets)."""


@dataclass
class Found:
    """What a part has come to."""

    claims: list[Claim] = field(default_factory=list)
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = field(default_factory=list)
    """Title, columns, rows."""

    def add(self, title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
        """A table."""
        self.tables.append((title, columns, rows))


@dataclass(frozen=True)
class Setting:
    """Where, and how large."""

    device: torch.device
    quick: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of all models."""
        return torch.bfloat16

    @property
    def rounds(self) -> int:
        """How often contenders take turns."""
        return 1 if self.quick else 7


def peak_during(work: Callable[[], object], device: torch.device) -> float:
    """GiB: the most in use while ``work`` runs, all that was there before included."""
    if device.type != "cuda":
        work()
        return in_use() / 2**30
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def flops_of(work: Callable[[], object]) -> float:
    """Of matrix products and attention, as they are run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_tflops(device: torch.device) -> float | None:
    """The card's own, by its name; None of one that is not known, and of a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(value) for key, value in PEAK_TFLOPS.items() if key in name), None)


def forget() -> None:
    """Give back what a case before has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fits(work: Callable[[], object]) -> bool:
    """Whether a case has enough memory; another that has not is no failure of all."""
    try:
        work()
    except torch.OutOfMemoryError:
        forget()
        return False
    return True


def ms(times: Sequence[float]) -> str:
    """The median, in milliseconds."""
    return f"{median(times) * 1000:,.1f}"
