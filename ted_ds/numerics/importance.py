"""How much a part of a model does, by what goes through it: sums over tokens, in fp64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def influence_sum(before: Float[Tensor, "tokens hidden"], after: Float[Tensor, "tokens hidden"]) -> Float[Tensor, ""]:
    """The sum over tokens of a block's influence: 1 less the cosine between its input and its output.

    (Men et al. 2024, ShortGPT, arXiv:2403.03853, section 3.2.)
    """
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=1)
    return (1 - cosine).sum()


def size_sums(states: Float[Tensor, "tokens units"]) -> Float[Tensor, " units"]:
    """The sum over tokens of each unit's absolute value.

    (What neurons and, behind norms, channels are chosen by: Muralidharan et al. 2024, Minitron, arXiv:2407.14679,
    section 2.2.)
    """
    return states.double().abs().sum(0)


def head_sums(outputs: Float[Tensor, "tokens heads_times_dim"], heads: int) -> Float[Tensor, " heads"]:
    """The sum over tokens of the norm of each head's output (there as well)."""
    return outputs.double().unflatten(1, (heads, -1)).norm(dim=2).sum(0)


def share_sums(states: Float[Tensor, "tokens channels"], *, centred: bool) -> Float[Tensor, " channels"]:
    """The sum over tokens of each channel's share of a state's squares, of its deviation from the mean if ``centred``.

    A state of zeros has none.
    """
    exact = states.double()
    squares = (exact - exact.mean(1, keepdim=True) if centred else exact).square()
    return (squares / squares.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)).sum(0)
