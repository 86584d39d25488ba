"""Linear maps in closed form: sums over tokens of products of states, and the ridge regression that they solve.

For inputs ``x`` and targets ``y`` of tokens ``t`` with weights ``w_t >= 0``, the map with the least

    sum_t w_t |W x_t + b - y_t|^2  +  strength * d * |W - W_0|^2

depends on the tokens by ``sum w x x'``, ``sum w y x'`` and ``sum w |y|^2`` alone, so that no states need be kept; ``d``
is the mean of the diagonal of the first, which makes a strength mean the same for states of any size. The bias is not
held back (Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 3.4.1, has the formula for
``W_0 = 0``; here it is applied to ``y - W_0 x - b_0``). Sums are of fp64, so that how tokens are cut into microbatches
and ranks shows in the last digits of fp64 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

WEAKEST, GROWTH, MAX_RAISES = 1e-12, 10.0, 16
"""A strength at which the sums cannot be solved is raised by ``GROWTH`` from at least ``WEAKEST``, so often at most."""


class NormalEquations:
    """Sums over weighted tokens, of inputs ``[tokens, inputs]`` and targets ``[tokens, targets]``."""

    def __init__(
        self, num_inputs: int, num_targets: int, *, with_bias: bool, device: torch.device | str = "cpu"
    ) -> None:
        """Of no tokens.

        Args:
            num_inputs: Width of the inputs.
            num_targets: Width of the targets.
            with_bias: Whether the map has a bias; then a 1 stands behind the inputs.
            device: Where the sums are.
        """
        self.with_bias = with_bias
        width = num_inputs + with_bias
        self.of_inputs = torch.zeros(width, width, dtype=torch.float64, device=device)
        """``sum w x x'``."""
        self.of_targets = torch.zeros(num_targets, width, dtype=torch.float64, device=device)
        """``sum w y x'``."""
        self.scalars = torch.zeros(3, dtype=torch.float64, device=device)
        """``sum w |y|^2``, ``sum w``, and the number of tokens with a weight."""

    @torch.no_grad()
    def add(
        self,
        inputs: Float[Tensor, "tokens inputs"],
        targets: Float[Tensor, "tokens targets"],
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> None:
        """Take in tokens; a weight of 0, or no weights for 1 each. A token of weight 0 may hold anything."""
        if weights is not None:
            kept = weights != 0
            inputs, targets, weights = inputs[kept], targets[kept], weights[kept].double()
        x, y = inputs.double(), targets.double()
        if self.with_bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        weighted = x if weights is None else x * weights.unsqueeze(1)
        self.of_inputs.addmm_(weighted.T, x)
        self.of_targets.addmm_(y.T, weighted)
        squares = y.square().sum(dim=1)
        total = float(len(x)) if weights is None else weights.sum()
        self.scalars += torch.stack(
            [
                squares.sum() if weights is None else squares @ weights,
                torch.as_tensor(total, dtype=torch.float64, device=self.scalars.device),
                torch.as_tensor(float(len(x)), dtype=torch.float64, device=self.scalars.device),
            ]
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All sums, to be summed over ranks in place, or kept and put back."""
        return self.of_inputs, self.of_targets, self.scalars

    @property
    def num_tokens(self) -> int:
        """How many tokens had a weight."""
        return int(self.scalars[2])

    @property
    def num_inputs(self) -> int:
        """How many unknowns each target has, a bias among them."""
        return len(self.of_inputs)

    @property
    def is_finite(self) -> bool:
        """Whether all tokens were."""
        return all(bool(one.isfinite().all()) for one in self.tensors)

    def relative_error(self, weights: Float[Tensor, "targets inputs"]) -> float:
        """``sum w |W x - y|^2 / sum w |y|^2`` of a map, its bias in the last column where there is one.

        0 where nothing is wrong, though all targets be 0; NaN of no tokens.
        """
        w = weights.double()
        error = ((w @ self.of_inputs) * w).sum() - 2 * (w * self.of_targets).sum() + self.scalars[0]
        error = error.clamp(min=0)  # of a perfect map, rounding may leave less
        return float(error / self.scalars[0]) if bool(error > 0) or self.num_tokens == 0 else 0.0


@dataclass(frozen=True)
class Fit:
    """A map solved from normal equations."""

    weights: Float[Tensor, "targets inputs"]
    """In fp64; the bias in the last column where there is one."""
    strength: float
    """Of the ridge that was taken."""
    strengths: dict[float, float]
    """Of each that was tried: the relative error on held-out tokens; on the fitted ones where none were held out."""
    was_raised: bool
    """Whether the sums could not be solved at the strength asked for."""
    condition: float
    """At least so much is the condition number of what was solved, by the diagonal of its Cholesky factor."""


@torch.no_grad()
def fit(
    equations: NormalEquations,
    *,
    towards: Float[Tensor, "targets inputs"],
    strengths: Sequence[float],
    heldout: NormalEquations | None = None,
) -> Fit:
    """The ridge regression ``towards`` a map, at the strength that is best on held-out tokens.

    Args:
        equations: Of the tokens to fit; finite.
        towards: The map to stay near, its bias in the last column where there is one.
        strengths: Which to try, as shares of the mean diagonal of the inputs' products; the best wins, the first of
            equal ones.
        heldout: Of other tokens; None to take the best on those that are fitted, which is the weakest.

    Raises:
        ValueError: The sums are not finite.
    """
    judges = heldout if heldout is not None and heldout.num_tokens else equations
    if not (equations.is_finite and judges.is_finite):
        raise ValueError("the sums are not finite")
    start = towards.to(equations.of_inputs)
    residual = equations.of_targets - start @ equations.of_inputs
    best: Fit | None = None
    tried: dict[float, float] = {}
    for asked in dict.fromkeys(strengths):
        factor, strength = _factor(equations, asked)
        step = torch.cholesky_solve(residual.T, factor).T
        weights = start + step
        error = judges.relative_error(weights)
        tried[strength] = error
        if best is None or error < tried[best.strength]:
            spread = factor.diagonal()
            condition = float((spread.max() / spread.min()).square()) if len(spread) else 1.0
            best = Fit(weights, strength, tried, strength != asked, condition)
    if best is None:
        raise ValueError("no strengths to try")
    return best


def _factor(equations: NormalEquations, asked: float) -> tuple[Tensor, float]:
    """The Cholesky factor of the inputs' products with a ridge, and the strength of that: raised until there is one."""
    products = equations.of_inputs
    held_back = torch.ones(len(products), dtype=products.dtype, device=products.device)
    if equations.with_bias:
        held_back[-1] = 0
    scale = (products.diagonal() * held_back).sum() / held_back.sum()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # inputs that are all 0 say nothing
    if equations.with_bias and not bool(products[-1, -1] > 0):
        held_back[-1] = 1  # of no tokens, the bias stays, too
    strength = asked
    for _ in range(MAX_RAISES):
        factor, info = torch.linalg.cholesky_ex(products + torch.diag(held_back * scale * strength))
        if int(info) == 0:
            return factor, strength
        strength = max(strength, WEAKEST) * GROWTH
    raise ValueError("the sums cannot be solved at any strength")


def inverse_mean_square(states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, " tokens"]:
    """Weights ``1 / mean(h^2)`` of tokens, in fp32; 0 of a state that is 0.

    Each token then counts by its relative error: states of some (the first of a text, often) are larger by orders of
    magnitude.
    """
    squares = states.float().square().mean(dim=-1)
    return torch.where(squares > 0, 1 / squares.clamp(min=torch.finfo(torch.float32).tiny), torch.zeros_like(squares))
