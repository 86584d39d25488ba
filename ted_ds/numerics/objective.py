"""The weighted sum of loss terms, divided once by their global counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def combine(totals: Mapping[str, Tensor], counts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum over terms of weight * total / global count``: this rank's and microbatch's share of the step's loss.

    Added up over ranks and microbatches it is the loss of the whole global batch, however that is cut up. It is 0
    without terms, as on a pipeline stage that has none.

    Args:
        totals: fp32 sums over this microbatch, with graph.
        counts: What each term is divided by: its count over all ranks and microbatches. A count of 0 (every label
            ignored) leaves a term of 0.
        weights: Weight of each term.

    Raises:
        ValueError: The three do not name the same terms.
    """
    if not totals.keys() == counts.keys() == weights.keys():
        raise ValueError(f"terms differ: totals {[*totals]}, counts {[*counts]}, weights {[*weights]}")
    if not totals:
        return torch.zeros(())
    shares = [weights[name] * totals[name] / counts[name].clamp(min=1) for name in totals]
    return sum(shares[1:], start=shares[0])
