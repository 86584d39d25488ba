"""Each loss term and its gradient against a brute-force version in fp64, written with loops from the formula."""

from __future__ import annotations

import math

import pytest
import torch

from ted_ds.numerics.losses import cross_entropy_sum, feature_mse_sum, kl_divergence_sum
from ted_ds.numerics.objective import combine

# fp32 sums of ~100 terms of size ~5; the worst difference seen over 200 seeds was 3e-6 relative
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def make_logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def brute_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [one / sum(exponentials) for one in exponentials]


def test_cross_entropy_is_the_sum_over_kept_labels_and_so_is_its_gradient():
    logits = make_logits(0, 3, 5, 7).requires_grad_()
    labels = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 2] = labels[1, :] = -100
    total = cross_entropy_sum(logits, labels)
    total.backward()
    expected, gradient = 0.0, torch.zeros(3, 5, 7, dtype=torch.float64)
    for b in range(3):
        for t in range(5):
            if labels[b, t] == -100:
                continue
            probabilities = brute_softmax(logits[b, t].tolist())
            expected -= math.log(probabilities[labels[b, t]])
            for v in range(7):
                gradient[b, t, v] = probabilities[v] - float(v == labels[b, t])
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(logits.grad.double(), gradient, **TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_teacher_to_student_times_the_squared_temperature(temperature):
    student, teacher = make_logits(0, 2, 4, 6).requires_grad_(), make_logits(1, 2, 4, 6).requires_grad_()
    keep = torch.tensor([[True, True, False, True], [False, True, True, True]])
    total = kl_divergence_sum(student, teacher, keep=keep, temperature=temperature)
    total.backward()
    expected, gradient = 0.0, torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for t in range(4):
            if not keep[b, t]:
                continue
            p = brute_softmax(teacher[b, t].tolist(), temperature)
            q = brute_softmax(student[b, t].tolist(), temperature)
            expected += temperature**2 * sum(p[v] * (math.log(p[v]) - math.log(q[v])) for v in range(6))
            for v in range(6):
                gradient[b, t, v] = temperature * (q[v] - p[v])
    torch.testing.assert_close(total.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(student.grad.double(), gradient, **TOLERANCE)
    assert teacher.grad is None


def test_kl_of_a_model_with_itself_is_zero_and_has_no_gradient():
    student = make_logits(0, 2, 4, 6).requires_grad_()
    total = kl_divergence_sum(student, student.detach(), keep=torch.ones(2, 4, dtype=torch.bool), temperature=2.0)
    total.backward()
    assert abs(total.item()) < 1e-6
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("normalise", [False, True])
def test_feature_mse_is_the_mean_over_dimensions_summed_over_kept_tokens(normalise):
    student, teacher = make_logits(0, 2, 4, 6).requires_grad_(), make_logits(1, 2, 4, 6).requires_grad_()
    keep = torch.tensor([[True, True, False, False], [True, True, True, True]])
    total = feature_mse_sum(student, teacher, keep=keep, normalise=normalise)
    total.backward()
    exact = student.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for t in range(4):
            if keep[b, t]:
                s, z = exact[b, t], teacher[b, t].detach().double()
                if normalise:
                    s, z = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (s, z))
                expected = expected + sum((s[d] - z[d]) ** 2 for d in range(6)) / 6
    expected.backward()
    torch.testing.assert_close(total.double(), expected, **TOLERANCE)
    torch.testing.assert_close(student.grad.double(), exact.grad, **TOLERANCE)
    assert teacher.grad is None


def test_padding_never_changes_a_term_whatever_it_holds():
    student, teacher = make_logits(0, 2, 4, 6), make_logits(1, 2, 4, 6)
    keep = torch.tensor([[True, True, False, False], [True, True, True, False]])
    labels = torch.where(keep, 3, -100)
    garbage_student, garbage_teacher = student.clone(), teacher.clone()
    garbage_student[~keep], garbage_teacher[~keep] = 1e4, -1e4
    for term in (
        lambda s, t: cross_entropy_sum(s, labels),
        lambda s, t: kl_divergence_sum(s, t, keep=keep, temperature=2.0),
        lambda s, t: feature_mse_sum(s, t, keep=keep),
    ):
        assert torch.equal(term(student, teacher), term(garbage_student, garbage_teacher))
    garbage_student[~keep] = float("nan")
    assert torch.isfinite(feature_mse_sum(garbage_student, teacher, keep=keep))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_logits_are_computed_in_fp32(dtype):
    logits = make_logits(0, 4, 9).to(dtype)
    labels = torch.tensor([0, 3, 8, -100])
    assert cross_entropy_sum(logits, labels) == cross_entropy_sum(logits.float(), labels)


def test_the_step_loss_does_not_depend_on_how_the_batch_is_cut():
    logits = make_logits(3, 6, 5, 7).double().requires_grad_()
    labels = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(4))
    labels[0] = labels[3, 1:] = -100  # a microbatch with nothing kept, and a ragged one
    count = (labels != -100).sum().float()
    gradients = []
    for size in (1, 2, 3, 6):
        logits.grad = None
        for rows in range(0, 6, size):
            part = slice(rows, rows + size)
            totals = {"loss/task": cross_entropy_sum(logits[part], labels[part])}
            combine(totals, {"loss/task": count}, {"loss/task": 0.7}).backward()
        gradients.append(logits.grad.clone())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-6, atol=1e-9)
    assert gradients[0].abs().sum() > 0


def test_a_term_with_nothing_kept_is_zero_and_not_nan():
    logits = make_logits(0, 2, 3).requires_grad_()
    totals = {"loss/task": cross_entropy_sum(logits, torch.full((2,), -100))}
    loss = combine(totals, {"loss/task": torch.zeros(())}, {"loss/task": 1.0})
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_terms_that_do_not_match_are_refused():
    one = {"loss/task": torch.zeros(())}
    with pytest.raises(ValueError, match="terms differ"):
        combine(one, one, {"loss/kl": 1.0})
