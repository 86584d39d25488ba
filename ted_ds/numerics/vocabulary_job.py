"""What is to be found of a vocabulary's logits, chunk by chunk, whatever computes it.

For :mod:`ted_ds.numerics.vocabulary`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from ted_ds.numerics.chunks import exact_dtype
from ted_ds.numerics.logits import LogitRule
from ted_ds.numerics.teacher_predictions import OnDisk, TeacherPredictions

Kernels = Literal["torch", "triton"]
"""What computes with logits, between the products that make them and those with their gradient."""


class OwnRows(NamedTuple):
    """Which of the rows each of the two losses has, where they differ."""

    labelled: Bool[Tensor, "rows 1"]
    predicted: Bool[Tensor, "rows 1"]

    def part(self, rows: slice) -> OwnRows:
        """Those of some of the rows."""
        return OwnRows(self.labelled[rows], self.predicted[rows])


@dataclass(frozen=True)
class Job:
    """The rows, what they are held against, and what is wanted of them."""

    labels: Tensor
    """0 where there is none."""
    rule: LogitRule
    own_rows: OwnRows | None
    teacher_hidden: Tensor | None
    teacher: TeacherPredictions | OnDisk | None
    task_weight: float
    needs: tuple[bool, ...]
    """Gradients of hidden states, weight, bias."""
    max_chunk_bytes: int
    dtype: torch.dtype
    """Of the products."""
    kernels: Kernels

    @functools.cached_property
    def unit(self) -> float | Tensor:
        """Gradients are computed for the weighted sum divided by this: near 1, where fp16 does not underflow."""
        of_divergence = self.teacher.weight if self.teacher else 0.0
        if isinstance(of_divergence, Tensor):
            return of_divergence.clamp(min=self.task_weight or torch.finfo(of_divergence.dtype).tiny)
        return max(self.task_weight, of_divergence) or 1.0

    @property
    def dense_teacher(self) -> TeacherPredictions | None:
        """The teacher whose logits are computed here."""
        return self.teacher if isinstance(self.teacher, TeacherPredictions) else None

    @property
    def exact(self) -> torch.dtype:
        """What sums and exponentials are computed in."""
        return exact_dtype(self.dtype)


def behind(chunk: slice, rows: slice) -> slice:
    """Rows of a chunk, as rows of all."""
    return slice(chunk.start + rows.start, chunk.start + rows.stop)


def sum_of(values: Tensor, rows: Tensor | None) -> Tensor:
    """The sum of what stands in ``rows``, else of all; NaN elsewhere is passed over."""
    return values.sum() if rows is None else torch.where(rows, values, torch.zeros_like(values)).sum()
