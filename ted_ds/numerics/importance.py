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
