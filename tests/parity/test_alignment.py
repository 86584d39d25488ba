"""Linear CKA of the tokens of a text, against centred Gram matrices in fp64; what it does not see, and its edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ted_ds.data.text_sizes import text_sizes
from ted_ds.numerics.alignment import feature_cka_sum
from tests.parity.test_vocabulary import gradcheck
from tests.plain import plain_cka

KEEP = torch.tensor([[True] * 5 + [False] * 4, [True] * 9, [False, True] + [False] * 7, [False] * 9])


def features(seed: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 + torch.randn(4, 9, dim, generator=generator, dtype=torch.float64) * 2).to(dtype)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dims", [(6, 6), (4, 15), (20, 20)])  # fewer than tokens, and more
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_each_text_counts_its_tokens(dims, normalise, dtype, tolerance):
    student, teacher = features(0, dims[0], dtype).requires_grad_(), features(1, dims[1], dtype).requires_grad_()
    total = feature_cka_sum(student, teacher, keep=KEEP, normalise=normalise)
    total.backward()
    exact = student.detach().double().requires_grad_()
    sides = [exact, teacher.detach().double()]
    if normalise:
        sides = [F.layer_norm(one, one.shape[-1:]) for one in sides]
    expected = sum(plain_cka(s[keep], t[keep]) for s, t, keep in zip(*sides, KEEP, strict=True))
    expected.backward()
    assert total.dtype == dtype
    torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
    assert teacher.grad is None


def test_gradcheck() -> None:
    keep, teacher = KEEP[:2], features(1, 4)[:2]
    assert gradcheck(
        lambda student: feature_cka_sum(student, teacher, keep=keep), (features(0, 4)[:2].requires_grad_(),)
    )


def test_it_sees_no_turn_no_scale_and_no_offset() -> None:
    student, teacher = features(0, 6), features(1, 6)
    turn, _ = torch.linalg.qr(features(2, 6)[0][:6])
    plain = feature_cka_sum(student, teacher, keep=KEEP)
    assert plain > 1
    torch.testing.assert_close(feature_cka_sum(-7e3 * student @ turn + 5, teacher, keep=KEEP), plain)
    assert feature_cka_sum(1e-3 * teacher @ turn - 1, teacher, keep=KEEP).abs() < 1e-12
    stretched = student * torch.tensor([9.0, 1, 1, 1, 1, 1])
    assert (feature_cka_sum(stretched, teacher, keep=KEEP) - plain).abs() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_do_not_differ_have_no_shape(dtype) -> None:
    same = torch.full((4, 9, 6), 0.1, dtype=dtype).requires_grad_()
    teacher = features(1, 6, dtype)
    several = torch.where(KEEP.sum(-1) > 1, KEEP.sum(-1), 0).sum()
    total = feature_cka_sum(same, teacher, keep=KEEP)
    total.backward()
    assert total == several  # nothing is shared
    assert same.grad.isfinite().all()
    assert feature_cka_sum(same, same * 3, keep=KEEP) == 0


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_what_is_not_kept_has_no_value_and_no_gradient(garbage) -> None:
    student, teacher = features(0, 6).requires_grad_(), features(1, 6)
    total = feature_cka_sum(student, teacher, keep=KEEP)
    total.backward()
    dropped = ~KEEP.unsqueeze(-1)
    filled = student.detach().masked_fill(dropped, garbage).requires_grad_()
    refilled = feature_cka_sum(filled, teacher.masked_fill(dropped, -garbage), keep=KEEP)
    refilled.backward()
    assert torch.equal(refilled, total)
    assert torch.equal(filled.grad, student.grad)
    assert not filled.grad[~KEEP].any()


def test_texts_are_rows_or_begin_where_positions_do() -> None:
    keep = torch.tensor([[True, True, False, True, False], [False] * 5, [False, True, True, True, True]])
    assert text_sizes(keep) == (3, 4)
    positions = torch.tensor([[0, 1, 2, 0, 0], [0] * 5, [0, 0, 0, 1, 0]])
    assert text_sizes(keep, positions) == (2, 1, 1, 2, 1)
    assert text_sizes(torch.zeros_like(keep)) == ()
