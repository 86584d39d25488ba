"""Loss terms added up over microbatches and steps, until they are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ted_ds.data.microbatch import to_device


@dataclass
class StepSums:
    """Loss terms of one or more steps: this rank's sums, everybody's counts."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: int = 0
    num_positions: int = 0
    """With padding and empty rows."""

    def add(self, totals: Mapping[str, Tensor]) -> None:
        """Add a microbatch's sums, without their graph."""
        for name, total in totals.items():
            self.totals[name] = self.totals.get(name, 0) + total.detach().double()

    def counts_on(self, device: torch.device) -> dict[str, Tensor]:
        """The counts as fp32 on a device, brought there by one copy, for which the host does not wait."""
        names = [*self.counts]
        if not names:
            return {}
        together = to_device(torch.stack([self.counts[name] for name in names]).float(), device)
        return dict(zip(names, together.unbind(), strict=True))

    def merge(self, step: StepSums) -> None:
        """Add another step's."""
        self.add(step.totals)
        for name, count in step.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.num_tokens += step.num_tokens
        self.num_positions += step.num_positions
