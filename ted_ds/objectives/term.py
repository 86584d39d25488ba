"""What an objective is made of: terms, each with its name, weight and count, and what it needs of a teacher."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ted_ds.config.needs import NOTHING, Needs
from ted_ds.data.loader import Batch
from ted_ds.objectives.gradient_balance import GradientBalance


@dataclass(frozen=True)
class Term:
    """A sum over what is kept, divided by the count of that in the whole global batch, times a weight."""

    name: str
    """Among the metrics: its formula."""
    weight: float
    count: Callable[[Batch], Tensor]
    """What a microbatch keeps for it; known before the forward pass."""
    needs: Needs = NOTHING


class Terms:
    """The terms of an objective, in the order of its reports."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self.balance: GradientBalance | None = None
        """What weighs terms by the gradients they have, where something does."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term."""
        return {term.name: term.weight for term in self.terms}

    @property
    def needs(self) -> Needs:
        """What the terms need in all."""
        return functools.reduce(operator.or_, (term.needs for term in self.terms), NOTHING)

    @property
    def changing_weights(self) -> dict[str, float]:
        """For reports: weights that are not the same at all steps, as they are at the one that was begun."""
        return {}

    def begin_step(self, step: int | None) -> None:
        """Weigh terms as at a step, counted from 0, or with None by what each weight comes to at most.

        Where weights are numbers, they stay.
        """

    def watch(self, wanted: bool) -> None:
        """Whether to look, in the steps that come, at more than they need."""

    def seen(self, device: torch.device) -> Tensor:
        """Sums of what was looked at since the last call, in fp64, as many on every rank, where they add up."""
        return torch.zeros(0, dtype=torch.float64, device=device)

    def told(self, sums: Sequence[float]) -> dict[str, float]:  # noqa: ARG002 - as the others
        """Metrics, from :meth:`seen` of all ranks."""
        return {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What a microbatch adds to each term's count; those that many terms share are counted once."""
        found = {count: count(batch) for count in dict.fromkeys(term.count for term in self.terms)}
        return {term.name: found[term.count] for term in self.terms}
