"""How the samples of a step come to ranks and microbatches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepDivision:
    """Of one rank; exactly one of the two sizes of microbatches is None."""

    global_batch_size: int
    """Samples per step over all ranks, which it divides over."""
    micro_batch_size: int | None
    """Samples per microbatch; divides a rank's part of a step."""
    micro_batch_tokens: int | None = None
    """Most padded tokens per microbatch, at least the longest sample's."""
    rank: int = 0
    """This one."""
    world_size: int = 1
    """All ranks; may be another number than a state was taken on."""
