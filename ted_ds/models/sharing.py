"""Weights that two models have in common, kept once."""

from __future__ import annotations

import torch
from torch import nn


def share_equal(frozen: nn.Module, trained: nn.Module) -> int:
    """Let parameters of a frozen model use the memory of equal ones that another module holds but does not train.

    Only of parameters that are whole on both sides. To be called before an engine takes ``trained``, which then finds
    them where they are.

    Returns:
        How many parameters are now kept once.
    """
    lenders = [one for one in trained.parameters() if not one.requires_grad and not hasattr(one, "ds_id")]
    count = 0
    for parameter in frozen.parameters():
        if hasattr(parameter, "ds_id"):
            continue
        lender = next((one for one in lenders if _are_equal(parameter, one)), None)
        if lender is not None and lender.data_ptr() != parameter.data_ptr():
            parameter.data = lender.data
            count += parameter.numel()
    return count


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    # a quantised one is of a class of its own
    alike = type(one.data) is type(other.data) and (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and one.device == other.device and bool(torch.equal(one, other))
