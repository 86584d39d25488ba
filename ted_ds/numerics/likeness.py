"""How alike the filtered states of both sides are, layer by layer: what is reported beside the losses.

Relative error: ``|s - t|^2 / |t|^2``, both summed over kept tokens and features.

Linear CKA (Kornblith et al. 2019) in its minibatch form (Nguyen, Raghu and Kornblith 2021, section 3.1): the unbiased
HSIC of Song et al. (2012) is summed over minibatches, and CKA is made of the sums. A minibatch is a text here, with at
most ``SAMPLED_TOKENS`` of its kept tokens, evenly spaced: no text is ever divided between ranks or microbatches, so
that these change nothing but the last bits. It compares how the tokens *of a text* lie to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ted_ds.numerics.chunks import MIB, compute_dtype, rows_per_chunk, select_rows
from ted_ds.numerics.fused import Layers, apply_layers

SAMPLED_TOKENS = 64
FEWEST_TOKENS = 4
"""Of a text: with fewer, the unbiased estimate does not exist."""
CHUNK_BYTES = {"cpu": 16 * MIB, "cuda": 64 * MIB}
"""Of the filtered states of a side."""
SUMS = ("difference", "teacher", "hsic_both", "hsic_student", "hsic_teacher")
"""What is added up of a layer, over texts, microbatches and ranks."""
ERROR, CKA = "relative_error", "cka"


@dataclass(frozen=True)
class Gauge:
    """Looks at what a layer-wise term compares."""

    then: Callable[[Tensor], None]
    """Gets the sums."""
    keep: Bool[Tensor, "batch seq"]
    """Which tokens' states."""

    rows: Int[Tensor, " kept"] | None
    """Which of the flattened tokens those are; None for all. To find it, the host would wait for the device."""

    @torch.no_grad()
    def see(self, student: Side, teacher: Side) -> None:
        """States of both sides."""
        with torch.autocast(student.states.device.type, enabled=False):
            self.then(likeness_sums(student, teacher, self.keep, self.rows))

    @torch.no_grad()
    def see_texts(self, student: Tensor, teacher: Tensor, kept: Tensor) -> None:
        """One filtered state a text, ``[batch, 1, dim]`` of each side: there are no tokens to compare within one."""
        own, theirs = (torch.where(kept[:, None, None], side.float(), 0.0) for side in (student, teacher))
        nothing = torch.zeros(len(SUMS) - 2, dtype=torch.float64, device=own.device)
        self.then(torch.cat([torch.stack([_square_sum(own - theirs), _square_sum(theirs)]), nothing]))


@dataclass(frozen=True)
class Side:
    """States of a layer, and the filter that is behind them."""

    states: Float[Tensor, "batch seq hidden"]
    layers: Layers

    def filtered(self, states: Tensor) -> Tensor:
        """States through the filter, computed in its precision, as fp32 at least."""
        layers = self.layers
        dtype = compute_dtype(layers[0][0]) if layers else states.dtype
        found = apply_layers(states.to(dtype), [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers])
        return found if found.dtype == torch.float64 else found.float()

    @property
    def width(self) -> int:
        """Of what comes out."""
        return self.layers[-1][0].shape[0] if self.layers else self.states.shape[-1]


def likeness_sums(
    student: Side, teacher: Side, keep: Bool[Tensor, "batch seq"], rows: Int[Tensor, " kept"] | None
) -> Float[Tensor, " sums"]:
    """The :data:`SUMS` of a microbatch, in fp64; see :class:`Gauge`."""
    device, width = student.states.device, max(student.width, teacher.width)
    max_bytes = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    of_both = [select_rows(side.states, rows) for side in (student, teacher)]
    size = rows_per_chunk(len(of_both[0]), width * 8, max_bytes)
    for start in range(0, len(of_both[0]), size):
        own, theirs = (
            side.filtered(states[start : start + size])
            for side, states in zip((student, teacher), of_both, strict=True)
        )
        sums[0] += _square_sum(own - theirs)
        sums[1] += _square_sum(theirs)
    sample = sample_tokens(keep)
    size = rows_per_chunk(len(keep), width * 8 * sample.shape[1], max_bytes)
    for start in range(0, len(keep), size):
        texts = slice(start, start + size)
        own, theirs = (side.filtered(_at(side.states[texts], sample[texts])) for side in (student, teacher))
        sums[2:] += torch.stack(hsic_sums(own, theirs, sample[texts] < keep.shape[1]))
    return sums


def likeness_of(sums: Sequence[float]) -> dict[str, float]:
    """The metrics of a layer from its :data:`SUMS`; without those that these have nothing of."""
    difference, teacher, both, own, theirs = sums
    found = {ERROR: difference / teacher} if teacher > 0 else {}
    if own > 0 and theirs > 0:
        found[CKA] = both / math.sqrt(own * theirs)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def sample_tokens(keep: Bool[Tensor, "batch seq"], most: int = SAMPLED_TOKENS) -> Int[Tensor, "batch sampled"]:
    """Positions of at most so many kept tokens of each text, evenly spaced; behind them ``seq``, which is none."""
    order = keep.cumsum(-1) - 1
    count = keep.sum(-1, keepdim=True)
    taken = count.clamp(max=most)
    # the first token of each of as many equal parts
    part = torch.div(order * taken, count.clamp(min=1), rounding_mode="floor")
    before = torch.div((order - 1) * taken, count.clamp(min=1), rounding_mode="floor")
    length = keep.shape[-1]
    positions = torch.arange(length, device=keep.device).expand_as(keep)
    return torch.where(keep & (part != before), positions, length).sort(-1).values[:, :most]


def hsic_sums(
    student: Float[Tensor, "batch tokens dim"],
    teacher: Float[Tensor, "batch tokens other_dim"],
    valid: Bool[Tensor, "batch tokens"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Over texts, the sums of the unbiased HSIC with linear kernels: of both sides, and of each with itself, in fp64.

    A Gram matrix whose rows and columns are made to sum up to 0 without its diagonal (Székely and Rizzo 2014, section
    3) gives the estimate of Song et al. (2012), equation 5, as a plain inner product.
    """
    count = valid.sum(-1).to(torch.float64)[:, None, None]
    is_enough = count[:, 0, 0] >= FEWEST_TOKENS
    own, theirs = (_centred_gram(one, valid, count) for one in (student, teacher))
    scale = torch.where(is_enough, 1 / (count * (count - 3))[:, 0, 0], 0.0)

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(is_enough, (one * other).sum((-2, -1)) * scale, 0.0).sum()

    return inner(own, theirs), inner(own, own), inner(theirs, theirs)


def _centred_gram(features: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    # the estimate does not see where the origin is; fp32 does
    mean = (features * valid.unsqueeze(-1)).sum(1, keepdim=True) / count.clamp(min=1).to(features.dtype)
    centred = (features - mean) * valid.unsqueeze(-1)
    gram = (centred @ centred.mT).to(torch.float64)
    others = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    others = others & ~torch.eye(valid.shape[-1], dtype=torch.bool, device=valid.device)
    gram = torch.where(others, gram, 0.0)
    by_row = gram.sum(-1, keepdim=True)
    gram = (
        gram
        - by_row / (count - 2)
        - by_row.mT / (count - 2)
        + by_row.sum(-2, keepdim=True) / ((count - 1) * (count - 2))
    )
    return torch.where(others, gram, 0.0)


def _at(states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, "batch sampled"]) -> Tensor:
    """The states at positions; any, where these are none."""
    rows = torch.arange(len(states), device=states.device).unsqueeze(-1)
    return states[rows, positions.clamp(max=states.shape[1] - 1)]


def _square_sum(values: Tensor) -> Tensor:
    """By rows: of millions, the sum hangs on how they are cut into chunks."""
    return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64).square().sum()
