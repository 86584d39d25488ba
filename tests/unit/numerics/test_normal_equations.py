"""Maps in closed form: against brute force, whatever the cut of the tokens, and where there is nothing to solve."""

from __future__ import annotations

import pytest
import torch

from ted_ds.numerics.normal_equations import NormalEquations, fit, inverse_mean_square


def states(num_tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equations_of(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor | None = None, *, with_bias: bool = False, cut: int = 10_000
) -> NormalEquations:
    found = NormalEquations(x.shape[1], y.shape[1], with_bias=with_bias)
    for start in range(0, len(x), cut):
        part = slice(start, start + cut)
        found.add(x[part], y[part], None if w is None else w[part])
    return found


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_map_has_the_least_penalised_error(with_bias: bool, weighted: bool) -> None:
    x, y, towards = states(50, 6, 1), states(50, 3, 2), states(3, 6 + with_bias, 3)
    w = states(50, 1, 4).square().squeeze(1) if weighted else None
    found = fit(equations_of(x, y, w, with_bias=with_bias), towards=towards, strengths=[0.3])
    weights = torch.ones(50, dtype=torch.float64) if w is None else w
    scale = (weights.unsqueeze(1) * x.square()).sum(0).mean()

    def penalised(flat: torch.Tensor) -> torch.Tensor:
        matrix = flat.reshape(3, -1)
        bias = matrix[:, 6:].T if with_bias else 0
        errors = (x @ matrix[:, :6].T + bias - y).square().sum(1)
        return weights @ errors + 0.3 * scale * (matrix[:, :6] - towards[:, :6]).square().sum()

    at = found.weights.flatten().requires_grad_()
    (gradient,) = torch.autograd.grad(penalised(at), at)  # of a convex function: 0 at its least alone
    assert gradient.abs().max() < 1e-10
    # and by brute force, as a least squares problem with the penalty as rows of its own
    design = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], 1) if with_bias else x
    rows = torch.cat(
        [design * weights.sqrt().unsqueeze(1), (0.3 * scale).sqrt() * torch.eye(6 + with_bias).double()[:6]]
    )
    sides = torch.cat([y * weights.sqrt().unsqueeze(1), (0.3 * scale).sqrt() * towards[:, :6].T])
    torch.testing.assert_close(found.weights, torch.linalg.lstsq(rows, sides).solution.T, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 7, 64])
def test_cuts_of_the_tokens_show_in_the_last_digits_alone(cut: int) -> None:
    x, y, w = states(64, 5, 1).float(), states(64, 4, 2).float(), states(64, 1, 3).square().squeeze(1).float()
    whole, parts = equations_of(x, y, w, with_bias=True), equations_of(x, y, w, with_bias=True, cut=cut)
    for one, other in zip(whole.tensors, parts.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_tokens_of_weight_0_may_hold_anything() -> None:
    x, y, w = states(20, 3, 1), states(20, 2, 2), torch.ones(20, dtype=torch.float64)
    w[4:7] = 0
    x[4], y[5] = float("nan"), float("inf")
    found = equations_of(x, y, w)
    assert found.is_finite
    assert found.num_tokens == 17
    kept = w != 0
    torch.testing.assert_close(found.of_inputs, x[kept].T @ x[kept])


def test_the_strength_is_chosen_on_held_out_tokens() -> None:
    true = states(2, 8, 1)
    x, other = states(10, 8, 2), states(2000, 8, 3)
    noisy, clean = x @ true.T + 3 * states(10, 2, 4), other @ true.T
    heldout = equations_of(other, clean)
    found = fit(equations_of(x, noisy), towards=torch.zeros(2, 8), strengths=[1e-6, 1.0, 1e6], heldout=heldout)
    assert found.strength == 1.0  # neither the noise learned by heart, nor nothing
    assert set(found.strengths) == {1e-6, 1.0, 1e6}
    brute = ((other @ found.weights.T - clean).square().sum() / clean.square().sum()).item()
    assert found.strengths[1.0] == pytest.approx(brute, rel=1e-10)
    assert fit(equations_of(x, noisy), towards=torch.zeros(2, 8), strengths=[1.0, 1e-6]).strength == 1e-6


def test_a_map_that_there_is_is_found() -> None:
    true = states(4, 7, 1)
    x = states(100, 6, 2)
    equations = equations_of(x, x @ true[:, :6].T + true[:, 6], with_bias=True)
    found = fit(equations, towards=torch.zeros(4, 7), strengths=[0.0])
    torch.testing.assert_close(found.weights, true, rtol=1e-10, atol=1e-10)
    assert equations.relative_error(found.weights) < 1e-12
    assert not found.was_raised


def test_sums_that_say_too_little_raise_the_ridge_and_stay_near() -> None:
    x, y = states(3, 5, 1), states(3, 2, 2)
    towards = states(2, 5, 3)
    found = fit(equations_of(x, y), towards=towards, strengths=[0.0])
    assert found.was_raised
    assert 0 < found.strength < 1e-6
    assert found.condition > 1e6
    apart = torch.linalg.svd(x).Vh[3:]  # directions no token has
    torch.testing.assert_close(found.weights @ apart.T, towards @ apart.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x @ found.weights.T, y, rtol=1e-4, atol=1e-4)


def test_of_no_tokens_nothing_changes() -> None:
    towards = states(2, 4, 1)
    for with_bias in (False, True):
        empty = NormalEquations(4 - with_bias, 2, with_bias=with_bias)
        torch.testing.assert_close(fit(empty, towards=towards, strengths=[0.1]).weights, towards)


def test_sums_that_are_not_finite_are_refused() -> None:
    x = states(5, 2)
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fit(equations_of(x, states(5, 1)), towards=torch.zeros(1, 2), strengths=[0.1])


def test_a_large_state_counts_like_a_small_one() -> None:
    h = torch.stack([torch.full((4,), 1000.0), torch.full((4,), 0.1), torch.zeros(4)])
    torch.testing.assert_close(inverse_mean_square(h), torch.tensor([1e-6, 100.0, 0.0]))
