"""Task-aware filters: one small map per matched layer, from a block's output to a space both sides share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

INITIAL_STD = 0.02


class Filter(nn.Module):
    """An affine map ``hidden_size -> dim`` (``linear``), or with one hidden layer and GELU (``mlp``).

    Weights start as N(0, 0.02) with zero bias (the reference's), or, for ``identity``, as the identity on the
    first ``min(hidden_size, dim)`` coordinates.
    """

    def __init__(self, hidden_size: int, dim: int, *, kind: str = "linear", initialisation: str = "normal") -> None:
        super().__init__()
        if kind == "linear":
            layers: list[nn.Module] = [nn.Linear(hidden_size, dim)]
        else:
            layers = [nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, dim)]
        self.map = nn.Sequential(*layers)
        for layer in self.map:
            if isinstance(layer, nn.Linear):
                if initialisation == "identity":
                    nn.init.eye_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=INITIAL_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq dim"]:
        """Filter the states, in the filter's own precision."""
        return self.map(states.to(next(self.map.parameters()).dtype))


class FilterBank(nn.Module):
    """The filters of one side, in the order of the layer map.

    A layer that several pairs share (a teacher layer) has one filter per pair, as each was matched on its own.
    """

    def __init__(
        self,
        layers: Sequence[int],
        hidden_size: int,
        dim: int,
        *,
        kind: str = "linear",
        initialisation: str = "normal",
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.filters = nn.ModuleList(
            Filter(hidden_size, dim, kind=kind, initialisation=initialisation) for _ in self.layers
        )

    def forward(self, states: Sequence[Float[Tensor, "batch seq hidden"]]) -> tuple[Tensor, ...]:
        """Filter the states of ``self.layers``; a length mismatch is an error."""
        return tuple(one(state) for one, state in zip(self.filters, states, strict=True))


class IdentityFilters(nn.Module):
    """No filter at all: the teacher's side of layer-wise distillation (``lwd``)."""

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The states themselves."""
        return tuple(states)


class PooledClassifier(nn.Module):
    """Stage I head for classification: a pooled feature, dense, GELU, linear (the reference's head)."""

    def __init__(self, dim: int, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, num_labels)
        for layer in (self.dense, self.classifier):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch labels"]:
        """Logits of the pooled features."""
        return self.classifier(nn.functional.gelu(self.dense(pooled)))


def pool(features: Float[Tensor, "batch seq dim"], attention_mask: Tensor, *, how: str) -> Float[Tensor, "batch dim"]:
    """Each row's ``first`` or ``last`` kept token, or the ``mean`` of its kept tokens."""
    order = torch.arange(features.shape[1], device=features.device)
    kept = attention_mask.bool()
    if how == "mean":
        weights = kept.to(features.dtype).unsqueeze(-1)
        return (features * weights).sum(1) / weights.sum(1)
    if how == "first":
        index = torch.where(kept, order, features.shape[1] - 1).amin(dim=1)
    else:
        index = torch.where(kept, order, 0).amax(dim=1)
    return features[torch.arange(features.shape[0], device=features.device), index]
