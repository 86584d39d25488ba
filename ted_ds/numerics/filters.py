"""Task-aware filters: one small map per matched layer, from a block's output to a space both sides share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ted_ds.numerics.feature_distances import MSE, FeatureDistance
from ted_ds.numerics.fused import Layers, apply_layers, filter_distance_sum
from ted_ds.numerics.layer_map import Layer
from ted_ds.numerics.likeness import Gauge, Side

INITIAL_STD = 0.02


@dataclass(frozen=True)
class Pooling:
    """Which one state of each text is read (:func:`pool`)."""

    how: str
    attention_mask: Tensor
    unread: Tensor | None = None

    def __call__(self, states: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch 1 dim"]:
        """It, of each text."""
        return pool(states, self.attention_mask, how=self.how, unread=self.unread).unsqueeze(1)


@dataclass(frozen=True)
class OfTexts:
    """How texts are compared by one state each, where the tokens of both sides do not pair."""

    student: Pooling
    teacher: Pooling | None
    """None where the teacher's states are of texts already."""
    kept: Bool[Tensor, " batch"]
    """True for rows that hold a text."""


@dataclass(frozen=True)
class Match:
    """What a student's filtered states are compared with."""

    teacher_states: Float[Tensor, "batch seq teacher_hidden"]
    teacher_filter: AnyFilter
    rows: Tensor | None
    """Which of the flattened tokens are kept; None for all."""
    distance: FeatureDistance = MSE
    """What is measured of a token, or of a text."""
    sizes: Sequence[int] | None = None
    """How many kept tokens each text has, for a distance that is of whole texts."""
    texts: OfTexts | None = None
    """Where texts are compared by one state each, whichever tokens are kept."""
    gauge: Gauge | None = None
    """What looks at the filtered states beside that; None for nothing."""


class AnyFilter(nn.Module):
    """Maps a block's output into the space in which both sides are compared."""

    def layers(self) -> Layers:
        """Weight and bias of each affine layer, with GELU in between."""
        raise NotImplementedError

    def forward(self, states: Float[Tensor, "batch seq hidden"], match: Match | None = None) -> Tensor:
        """Filter the states, in the filter's own precision: ``[batch, seq, dim]``.

        With a ``match``: the sum over kept tokens of their distance instead, without ever having that; or
        over texts, of the one feature that Stage I reads of each.
        """
        layers = self.layers()
        if match is None:
            return apply_layers(states.to(layers[0][0].dtype) if layers else states, layers)
        if match.texts is not None:
            with torch.autocast(states.device.type, enabled=False):
                own = self.of_texts(states, match.texts.student)
                theirs = match.teacher_filter.of_texts(match.teacher_states, match.texts.teacher)
            if match.gauge is not None:
                match.gauge.see_texts(own.detach(), theirs, match.texts.kept)
            return match.distance.sum(own, theirs, keep=match.texts.kept.unsqueeze(1))
        if match.gauge is not None:
            match.gauge.see(Side(states, layers), Side(match.teacher_states, match.teacher_filter.layers()))
        return filter_distance_sum(
            states,
            match.teacher_states,
            student_filter=layers,
            teacher_filter=match.teacher_filter.layers(),
            rows=match.rows,
            sizes=match.sizes,
            distance=match.distance,
        )

    def of_texts(
        self, states: Float[Tensor, "batch seq hidden"], pooling: Pooling | None
    ) -> Float[Tensor, "batch 1 dim"]:
        """The pooled feature of each text, as Stage I reads it. States that are of texts have no ``pooling`` left."""
        if pooling is None:
            return self.forward(states)
        if pooling.how == "mean" and len(self.layers()) > 1:  # it goes through affine maps alone
            return pooling(self.forward(states))
        return self.forward(pooling(states))


class Filter(AnyFilter):
    """An affine map ``hidden_size -> dim`` (``linear``), or with one hidden layer and GELU (``mlp``).

    Weights start as N(0, 0.02) with zero bias (the reference's), or, for ``identity``, as the identity on the
    first ``min(hidden_size, dim)`` coordinates.
    """

    def __init__(self, hidden_size: int, dim: int, *, kind: str = "linear", initialisation: str = "normal") -> None:
        super().__init__()
        # all of a filter's weights are its own, not of modules within: ZeRO-3 then has them together in its forward
        self.hidden_weight = nn.Parameter(torch.empty(hidden_size, hidden_size)) if kind == "mlp" else None
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_size)) if kind == "mlp" else None
        self.weight = nn.Parameter(torch.empty(dim, hidden_size))
        self.bias = nn.Parameter(torch.zeros(dim))
        for weight in (self.hidden_weight, self.weight):
            if weight is not None and initialisation == "identity":
                nn.init.eye_(weight)
            elif weight is not None:
                nn.init.normal_(weight, std=INITIAL_STD)

    def layers(self) -> Layers:
        """One, or two."""
        last = (self.weight, self.bias)
        if self.hidden_weight is None or self.hidden_bias is None:
            return [last]
        return [(self.hidden_weight, self.hidden_bias), last]


class IdentityFilter(AnyFilter):
    """No filter."""

    def layers(self) -> Layers:
        """None."""
        return []


class FilterBank(nn.Module):
    """The filters of one side, in the order of the layer map.

    A layer that several pairs share (a teacher layer) has one filter per pair, as each was matched on its own.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
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

    def keep(self, places: Sequence[int]) -> None:
        """Drop the filters of other places in the layer map than these."""
        for place in set(range(len(self.filters))) - set(places):
            self.filters[place] = nn.Identity()


class IdentityFilters(FilterBank):
    """No filters at all: the teacher's side of layer-wise distillation (``lwd``)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__((), 0, 0)
        self.layers = tuple(layers)
        self.filters = nn.ModuleList(IdentityFilter() for _ in self.layers)


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


def pool(
    features: Float[Tensor, "batch seq dim"], attention_mask: Tensor, *, how: str, unread: Tensor | None = None
) -> Float[Tensor, "batch dim"]:
    """Each row's ``first`` or ``last`` kept token, or the ``mean`` of its kept tokens.

    The one definition of the token that a decoder's label is read at, in the model itself as in its filters: padding is
    known by ``attention_mask``, whatever the ids. Kept tokens that are ``unread`` (``[batch, seq]``) are not the
    ``last``; where a row has no others, the first of them is.
    """
    if how == "mean":
        weights = attention_mask.bool().to(features.dtype).unsqueeze(-1)
        return (features * weights).sum(1) / weights.sum(1)
    index = read_at(attention_mask, how=how, unread=unread)
    return features[torch.arange(features.shape[0], device=features.device), index]


def read_at(attention_mask: Tensor, *, how: str, unread: Tensor | None = None) -> Int[Tensor, " batch"]:
    """The place, in its row, of the token that :func:`pool` reads of each row: the ``first`` or the ``last``."""
    order, kept = torch.arange(attention_mask.shape[1], device=attention_mask.device), attention_mask.bool()
    index = torch.where(kept, order, attention_mask.shape[1] - 1).amin(dim=1)
    if how == "last":
        read = kept if unread is None else kept & ~unread
        index = torch.maximum(index, torch.where(read, order, 0).amax(dim=1))
    return index
