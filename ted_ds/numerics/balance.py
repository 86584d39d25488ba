"""The auxiliary loss by which the routers of a mixture of experts keep the experts evenly loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def balance_sum(
    router_logits: Sequence[Float[Tensor, "positions experts"]],
    kept: Bool[Tensor, "batch seq"],
    num_chosen: int,
) -> Float[Tensor, ""]:
    """Over kept tokens, the sum of the auxiliary loss of the row that each is in.

    Of a row it is ``E * sum over experts of f_e P_e`` (Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6, as
    transformers has it): ``f_e`` is how many of its kept tokens an expert is chosen for, ``P_e`` the mean of its
    probability, both over the row's kept tokens in all blocks together. A product of two means of a batch would hang on
    how the global batch is cut into ranks and microbatches, as no sum of parts is the whole's; a row is never cut. Of a
    batch of one row it is transformers' own.

    Args:
        router_logits: Of each block with experts, for the flattened tokens.
        kept: Which tokens are data.
        num_chosen: How many experts a token goes through.

    Returns:
        In fp32. Gradient flows through the probabilities alone.
    """
    weights = kept.unsqueeze(-1).float()
    num_tokens = kept.sum(1).float()
    chosen, probabilities = [], []
    for logits in router_logits:
        of_rows = logits.float().view(*kept.shape, -1).softmax(-1)
        best = of_rows.detach().topk(num_chosen, dim=-1).indices
        chosen.append((F.one_hot(best, of_rows.shape[-1]).sum(-2) * weights).sum(1))
        probabilities.append((of_rows * weights).sum(1))
    of_experts = torch.stack(chosen).sum(0) * torch.stack(probabilities).sum(0)  # [batch, experts]
    num_routed = len(chosen) * num_tokens.clamp(min=1)
    return (num_tokens * of_experts.shape[-1] * of_experts.sum(-1) / num_routed**2).sum()
