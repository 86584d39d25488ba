"""Which of a batch's tokens are of one text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def text_sizes(
    keep: Bool[Tensor, "batch seq"], position_ids: Int[Tensor, "batch seq"] | None = None
) -> tuple[int, ...]:
    """How many tokens of each text are kept, in the order of the flattened ones; texts without any are left out.

    A row is a text, or holds several, each of which begins where positions do.
    """
    starts = torch.zeros_like(keep)
    starts[:, 0] = True
    if position_ids is not None:
        starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    text = starts.flatten().cumsum(0)[keep.flatten()]
    return tuple(torch.unique_consecutive(text, return_counts=True)[1].tolist())
