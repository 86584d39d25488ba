"""What is in a model's weight files: numbers that are not finite, and matrices of zeros."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ted_ds.vetting.verdict import Verdict

ZERO_MATRICES_ALLOWED = 0.1
"""Share of parameters in matrices that hold nothing but zeros; a few models start some so, none leave them."""


@dataclass(frozen=True)
class WeightCounts:
    """Counts over tensors; add them up for a model."""

    num_parameters: int = 0
    num_zeros: int = 0
    num_in_zero_matrices: int = 0
    nonfinite: tuple[str, ...] = ()
    """Names of tensors with NaN or infinite values."""

    def __add__(self, other: WeightCounts) -> WeightCounts:
        return WeightCounts(
            *(operator.add(*pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True))
        )


def count_weights(files: Sequence[Path]) -> WeightCounts:
    """Count over safetensors files, a tensor at a time."""
    counts = WeightCounts()
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                counts += _count(name, weights.get_tensor(name))
    return counts


def _count(name: str, tensor: torch.Tensor) -> WeightCounts:
    if tensor.is_floating_point() and tensor.element_size() == 1:  # torch has little arithmetic in 8 bits
        tensor = tensor.float()
    num_zeros = int((tensor == 0).sum())
    is_zero_matrix = tensor.dim() >= 2 and num_zeros == tensor.numel()
    finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
    return WeightCounts(tensor.numel(), num_zeros, tensor.numel() if is_zero_matrix else 0, () if finite else (name,))


def judge_weights(model: str, parts: Sequence[WeightCounts]) -> Verdict:
    """The verdict on a model's weights, from the counts of all its files."""
    total = functools.reduce(operator.add, parts, WeightCounts())
    check = f"{model} weights"
    share = total.num_zeros / max(total.num_parameters, 1)
    facts = f"{total.num_parameters:,} values, {100 * share:.2f} % zeros"
    if total.nonfinite:
        names = ", ".join(total.nonfinite[:3])
        return Verdict(check, "fail", f"{len(total.nonfinite)} tensors hold NaN or infinity: {names}; copy it again")
    if total.num_in_zero_matrices > ZERO_MATRICES_ALLOWED * total.num_parameters:
        return Verdict(check, "fail", f"{total.num_in_zero_matrices:,} of {facts} are in matrices of nothing but zeros")
    return Verdict(check, "pass", f"{facts}, all finite")
