"""How large the gradients of Stage II's terms are, and weights as shares of them: each term is scaled by its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ted_ds.config.distill import Distill

REPORTED = "train/gradient_norm"
"""Of a term, behind a slash: its norm as it was last averaged."""


class GradientBalance:
    """Measures terms' gradients on one block, and brings their norms to given proportions where a plan wants that.

    The idea is GradNorm's (Chen et al. 2018): terms are compared by the norm of the gradient that each has, with a
    weight of 1 and over the whole global batch, on the weights of the last block that all terms reach. Of each norm a
    moving average is kept; the factor of a term is the first term's average over its own. So the first keeps its
    weight, and with equal weights all have gradients of one size. Chen et al. learn their factors by a gradient,
    towards equal rates of training; these are computed, and hang on nothing but what was measured.
    """

    def __init__(
        self,
        plan: Distill,
        parameters: Sequence[nn.Parameter],
        *,
        weigh: Callable[[str | None], None],
    ) -> None:
        """Balance terms.

        Args:
            plan: Says which terms (the first is what others are scaled to), how often they are measured, how much of
                a moving average stays at each measurement, and how large a factor may become.
            parameters: On which their gradients are measured.
            weigh: Has the objective weigh the term of a name by 1 and the others by 0, or with None as this says.
        """
        self.terms, self.parameters = tuple(plan.weighed), tuple(parameters)
        self.is_due = False
        """Whether norms are to be measured in the step that was begun."""
        self.weighs = plan.balance == "gradient_norm"
        """Or else measures alone."""
        self._plan, self._weigh = plan, weigh
        self._norms: dict[str, float] = {}

    def begin_step(self, step: int | None) -> None:
        """Say whether to measure at a step, counted from 0; with None, as of no step, it is."""
        self.is_due = step is None or step % self._plan.balance_every_steps == 0

    @contextlib.contextmanager
    def alone(self, term: str) -> Iterator[None]:
        """While this is open, the loss is that one term, with a weight of 1."""
        self._weigh(term)
        try:
            yield
        finally:
            self._weigh(None)

    def take(self, norms: Mapping[str, float]) -> None:
        """Take what was measured of each term, the same on every rank, and weigh by it from now on.

        A gradient of 0 (a step without a label) or one that is not finite says nothing of a term's size.
        """
        stays = self._plan.balance_average
        for name, norm in norms.items():
            if math.isfinite(norm) and norm > 0:
                before = self._norms.get(name, norm)
                self._norms[name] = stays * before + (1 - stays) * norm
        self.is_due = False
        self._weigh(None)

    def factor(self, term: str) -> float:
        """By which a term's weight is multiplied: 1 until there is a norm of it, and of the first term."""
        if not self.weighs:
            return 1.0
        first = self._norms.get(self.terms[0])
        if first is None or term not in self._norms:
            return 1.0
        return min(first / self._norms[term], self._plan.balance_max_factor)

    @property
    def reported(self) -> dict[str, float]:
        """The averages, for reports."""
        return {f"{REPORTED}/{name.removesuffix('_weight')}": norm for name, norm in self._norms.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"norms": dict(self._norms)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._norms = dict(state["norms"])
        self._weigh(None)
