"""What is kept of a teacher's predictions: made of its last hidden states, chunk by chunk.

What a student learns of it is in :mod:`ted_ds.numerics.teacher_predictions`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ted_ds.numerics.chunks import MIB, chunk_bytes, exact_dtype, rows_per_chunk, slices, write_logits
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.losses import IGNORED_LABEL, NO_CANDIDATE

BLOCK_BYTES = {"cpu": 16 * MIB, "cuda": 64 * MIB}
"""Logits brought to fp32 at a time: what is made of them takes up to 12 times as much beside a chunk
(:mod:`ted_ds.planning.filling`)."""
WHOLE = 2.0**60
"""A probability of 1 where probabilities are cumulated, as an integer: in any order, and so on any device, to the same
bits. (Of numbers with a point, a GPU does it in an order of chance, which ``deterministic: true`` refuses.)"""


class Kept(NamedTuple):
    """Of each row of predictions."""

    ids: Int[Tensor, "rows kept"]
    """The most probable ones, in that order; or those that were drawn, from the first on."""
    numbers: Float[Tensor, "rows kept_and_one"]
    """Logs of their probabilities at the temperature, and of what all others come to, which is the last.

    Or how often each was drawn, 0 where there are no more, and the entropy of the whole in nats.
    """
    losses: Float[Tensor, " rows"]
    """The cross-entropy of the label, at temperature 1 and over the whole vocabulary; 0 where there is none."""


@dataclass(frozen=True)
class Keeping:
    """What is to be kept."""

    num_kept: int
    """Ids of each row, at most ``num_ids``."""
    num_ids: int
    """The first so many are what a prediction is over."""
    temperature: float
    drawn: bool = False
    """Whether so many are drawn; else those most probable are kept."""


@torch.no_grad()
def keep_top(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " rows"],
    keeping: Keeping,
    rule: LogitRule = PLAIN,
) -> Kept:
    """The most probable ids of each row; logits of all rows never exist at once."""
    parts = []
    for rows, logits in logits_by_chunk(hidden, weight, bias, rule):
        losses = F.cross_entropy(logits, labels[rows], reduction="none", ignore_index=IGNORED_LABEL)
        logs = _softened(logits, keeping)
        top, ids = logs.topk(keeping.num_kept, dim=-1)
        logs.scatter_(-1, ids, -torch.inf)
        rest = logs.logsumexp(-1, keepdim=True).clamp(min=NO_CANDIDATE)
        parts.append(Kept(ids, torch.cat([top, rest], -1), losses))
    if not parts:
        return _nothing(labels, weight, keeping)
    return Kept(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def keep_drawn(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " rows"],
    keeping: Keeping,
    rule: LogitRule = PLAIN,
    *,
    starts: Float[Tensor, " rows"],
) -> Kept:
    """Draws of each row: id v is drawn n p_v times on average, and less than once more or fewer in any case.

    Systematic sampling (Madow 1949): id v is drawn for each i from 0 to n - 1 with ``(start + i) / n`` in the part of
    the cumulated probabilities that is v's. Where ``starts`` are uniform in [0, 1), the counts over n are an estimate
    of p without bias, and none varies more than by n draws one by one.
    """
    parts, num_draws = [], keeping.num_kept
    for rows, logits in logits_by_chunk(hidden, weight, bias, rule):
        losses = F.cross_entropy(logits, labels[rows], reduction="none", ignore_index=IGNORED_LABEL)
        logs = _softened(logits, keeping)
        shares = logs.exp()
        entropies = -(shares * logs).sum(-1, keepdim=True)
        bounds = shares.double().mul_(WHOLE).long().cumsum(-1).double()
        bounds *= num_draws / bounds[:, -1:]
        # how many of the places lie below each bound
        passed = bounds.sub_(starts[rows, None].double()).ceil_().clamp_(0, num_draws)
        passed[:, -1] = num_draws
        counts = passed.diff(dim=-1, prepend=passed.new_zeros(len(passed), 1))
        most, ids = counts.topk(min(num_draws, counts.shape[1]), dim=-1)
        parts.append(Kept(ids, torch.cat([most.to(logs.dtype), entropies], -1), losses))
    if not parts:
        return _nothing(labels, weight, keeping)
    return Kept(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _nothing(labels: Tensor, weight: Tensor, keeping: Keeping) -> Kept:
    """What is kept of no row."""
    numbers = weight.new_zeros(0, keeping.num_kept + 1, dtype=exact_dtype(weight.dtype))
    return Kept(labels.new_zeros(0, keeping.num_kept), numbers, numbers.new_zeros(0))


@torch.no_grad()
def lost(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    kept: Kept,
    keeping: Keeping,
    rule: LogitRule = PLAIN,
) -> Float[Tensor, " 2"]:
    """What is not known of predictions by what was kept of them, summed over rows.

    KL(p || p~) in nats, where p~ is what was kept with its rest spread evenly over all other ids, and p_R.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
    for rows, logits in logits_by_chunk(hidden, weight, bias, rule):
        logs, others = _softened(logits, keeping), max(keeping.num_ids - keeping.num_kept, 1)
        ids, of_kept = kept.ids[rows], kept.numbers[rows].to(logs.dtype)
        restored = (of_kept[:, -1:] - math.log(others)).expand_as(logs).clone()
        restored.scatter_(-1, ids, of_kept[:, :-1])
        sums[0] += (logs.exp() * (logs - restored)).sum()
        sums[1] += (1 - logs.gather(-1, ids).exp().sum(-1)).clamp(min=0).sum()
    return sums


def logits_by_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rule: LogitRule
) -> Iterator[tuple[slice, Tensor]]:
    """The logits of a few rows at a time, in fp32 at least, and which rows these are."""
    exact, vocab, device = exact_dtype(weight.dtype), weight.shape[0], hidden.device
    size = rows_per_chunk(len(hidden), vocab * weight.dtype.itemsize, chunk_bytes(device))
    at_once = max(1, BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"]) // (vocab * exact.itemsize))
    products = torch.empty(min(size, len(hidden)), vocab, dtype=weight.dtype, device=device)
    for chunk in slices(len(hidden), size):
        logits = products[: chunk.stop - chunk.start]
        write_logits(logits, hidden[chunk].to(weight.dtype), weight, bias)
        for rows in slices(len(logits), at_once):
            yield slice(chunk.start + rows.start, chunk.start + rows.stop), rule(logits[rows].to(exact))


def _softened(logits: Tensor, keeping: Keeping) -> Tensor:
    """Logs of the probabilities at the temperature."""
    return torch.log_softmax(logits[:, : keeping.num_ids] / keeping.temperature, -1)
