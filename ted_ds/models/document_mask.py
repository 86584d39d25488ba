"""The mask of isolated documents, for models whose own masks do not find them by where positions start again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def mask_of_documents(arguments: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What goes beside positions that are given without a mask: one by which tokens see the past of their document.

    Args:
        arguments: What the model is given.
        dtype: Of its states.

    Returns:
        ``attention_mask``, ``[batch, 1, seq, seq]``, to be added to attention scores; nothing, where there is a mask,
        or where no positions are given.
    """
    if "attention_mask" in arguments or "position_ids" not in arguments:
        return {}
    positions = arguments["position_ids"]
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[:, 1:] = positions[:, 1:] <= positions[:, :-1]
    document = starts.long().cumsum(1)
    seen = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return {"attention_mask": mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)}
