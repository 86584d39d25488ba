"""Each loss term and its gradient against a brute-force version in fp64, written with loops from the formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ted_ds.numerics.feature_distances import SUMS, FeatureDistance
from ted_ds.numerics.losses import (
    bernoulli_divergence_sum,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    divergence_sum,
    feature_cosine_sum,
    feature_mse_sum,
    kept_labels,
    soft_cross_entropy_sum,
    squared_error_sum,
)
from ted_ds.numerics.objective import combine
from ted_ds.numerics.task_terms import WeighedCrossEntropy
from tests.task_kinds import TASK_TERMS

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


@pytest.mark.parametrize(
    ("weights", "smoothing"), [((1, 1, 1, 1), 0.1), ((0.5, 2, 0, 1.5), 0.0), ((0.5, 2, 0, 1.5), 0.3)]
)
def test_weighed_cross_entropy_is_the_sum_over_kept_labels_and_so_is_its_gradient(weights, smoothing):
    logits = make_logits(0, 3, 5, 4).requires_grad_()
    labels = torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 2] = labels[1, :] = -100
    with torch.no_grad():
        logits[0, 2] = float("nan")
    expected, gradient = 0.0, torch.zeros(3, 5, 4, dtype=torch.float64)
    for b, t in itertools.product(range(3), range(5)):
        if labels[b, t] == -100:
            continue
        q = brute_softmax(logits[b, t].tolist())
        target = [weights[c] * (smoothing / 4 + (1 - smoothing) * float(c == labels[b, t])) for c in range(4)]
        for c in range(4):
            expected -= target[c] * math.log(q[c])
            gradient[b, t, c] = q[c] * sum(target) - target[c]
    of_torch = torch.nn.functional.cross_entropy(
        logits.detach().double().nan_to_num().flatten(0, 1),
        labels.flatten(),
        weight=torch.tensor(weights, dtype=torch.float64),
        label_smoothing=smoothing,
        reduction="sum",
    )
    assert of_torch.item() == pytest.approx(expected, rel=1e-12)
    loss = WeighedCrossEntropy(tuple(map(float, weights)), smoothing)
    check(loss(logits, labels), logits, expected, gradient)


def test_weights_of_one_and_no_smoothing_are_the_plain_cross_entropy():
    logits, labels = make_logits(0, 6, 4), torch.tensor([0, 3, 1, -100, 2, 2])
    assert torch.equal(WeighedCrossEntropy((1.0,) * 4)(logits, labels), cross_entropy_sum(logits, labels))


def brute_logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def brute_bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def check(total: torch.Tensor, logits: torch.Tensor, expected: float, gradient: torch.Tensor) -> None:
    """Value and gradient of a total are as expected; both are fp64."""
    total.backward()
    assert total.dtype == torch.float32
    assert logits.grad is not None
    torch.testing.assert_close(total.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE)
    torch.testing.assert_close(logits.grad.double(), gradient, **TOLERANCE)


def make_distributions(seed: int, *shape: int) -> torch.Tensor:
    return make_logits(seed, *shape).softmax(-1)


def test_soft_cross_entropy_is_the_sum_over_kept_rows_and_so_is_its_gradient():
    logits = make_logits(0, 5, 4).requires_grad_()
    probabilities = make_distributions(1, 5, 4)
    probabilities[1] = probabilities[4, 2] = float("nan")  # a row of which one entry is missing is no distribution
    probabilities[2] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    expected, gradient = 0.0, torch.zeros(5, 4, dtype=torch.float64)
    for b in (0, 2, 3):
        q, p = brute_softmax(logits[b].tolist()), probabilities[b].tolist()
        for c in range(4):
            expected -= p[c] * math.log(q[c])
            gradient[b, c] = q[c] * sum(p) - p[c]
    check(soft_cross_entropy_sum(logits, probabilities), logits, expected, gradient)


def test_soft_cross_entropy_to_one_certain_label_is_the_cross_entropy():
    logits, labels = make_logits(0, 5, 4), torch.tensor([0, 3, 1, -100, 2])
    certain = torch.nn.functional.one_hot(labels.clamp(min=0), 4).float()
    certain[3] = float("nan")
    torch.testing.assert_close(
        soft_cross_entropy_sum(logits, certain), cross_entropy_sum(logits, labels), rtol=1e-6, atol=0
    )


def test_binary_cross_entropy_is_the_sum_over_kept_entries_and_so_is_its_gradient():
    logits = make_logits(0, 4, 3).requires_grad_()
    labels = (make_logits(1, 4, 3) > 0).float()
    labels[0, 1] = labels[3] = float("nan")
    expected, gradient = 0.0, torch.zeros(4, 3, dtype=torch.float64)
    for b in range(4):
        for c in range(3):
            if math.isnan(labels[b, c]):
                continue
            probability, label = brute_logistic(logits[b, c].item()), labels[b, c].item()
            expected -= label * math.log(probability) + (1 - label) * math.log(1 - probability)
            gradient[b, c] = probability - label
    check(binary_cross_entropy_sum(logits, labels), logits, expected, gradient)


def squared_error_to(outputs, targets):
    return squared_error_sum(outputs, targets, keep=kept_labels(targets))


def test_a_teacher_that_is_not_finite_is_not_a_target_to_ignore():
    student = make_logits(0, 3, 1).requires_grad_()
    teacher = torch.tensor([[1.0], [NAN], [2.0]])
    for kind in ("regression", "multi_label_classification", "sequence_classification"):
        keep = torch.ones(3, dtype=torch.bool) if kind == "sequence_classification" else torch.ones_like(teacher).bool()
        assert TASK_TERMS[kind].prediction_sum(student, teacher, keep, 2.0).isnan()


def test_squared_error_is_the_sum_over_kept_targets_and_so_is_its_gradient():
    outputs = make_logits(0, 4, 3).requires_grad_()
    targets = make_logits(1, 4, 3)
    targets[0, 1] = targets[3] = float("nan")
    targets[1, 1] = -100.0  # a number like any other
    expected, gradient = 0.0, torch.zeros(4, 3, dtype=torch.float64)
    for b in range(4):
        for c in range(3):
            if not math.isnan(targets[b, c]):
                difference = outputs[b, c].item() - targets[b, c].item()
                expected += difference**2
                gradient[b, c] = 2 * difference
    check(squared_error_to(outputs, targets), outputs, expected, gradient)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_is_from_teacher_to_student_at_a_temperature(temperature):
    student, teacher = make_logits(0, 2, 4, 6).requires_grad_(), make_logits(1, 2, 4, 6).requires_grad_()
    keep = torch.tensor([[True, True, False, True], [False, True, True, True]])
    expected, gradient = 0.0, torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for t in range(4):
            if not keep[b, t]:
                continue
            p = brute_softmax(teacher[b, t].tolist(), temperature)
            q = brute_softmax(student[b, t].tolist(), temperature)
            expected += sum(p[v] * (math.log(p[v]) - math.log(q[v])) for v in range(6))
            for v in range(6):
                gradient[b, t, v] = (q[v] - p[v]) / temperature
    check(divergence_sum(student, teacher, keep=keep, temperature=temperature), student, expected, gradient)
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_bernoulli_kl_is_from_teacher_to_student_at_a_temperature(temperature):
    student, teacher = make_logits(0, 5, 3).requires_grad_(), make_logits(1, 5, 3).requires_grad_()
    keep = torch.ones(5, 3, dtype=torch.bool)
    keep[1] = keep[4, 2] = False
    expected, gradient = 0.0, torch.zeros(5, 3, dtype=torch.float64)
    for b in range(5):
        for c in range(3):
            if keep[b, c]:
                p, q = (brute_logistic(one[b, c].item() / temperature) for one in (teacher, student))
                expected += brute_bernoulli_kl(p, q)
                gradient[b, c] = (q - p) / temperature
    check(bernoulli_divergence_sum(student, teacher, keep=keep, temperature=temperature), student, expected, gradient)
    assert teacher.grad is None


def test_a_bernoulli_kl_is_the_kl_over_yes_and_no():
    student, teacher = make_logits(0, 5, 3), make_logits(1, 5, 3)
    keep = torch.ones(5, 3, dtype=torch.bool)
    as_classes = [torch.stack([one, torch.zeros_like(one)], dim=-1) for one in (student, teacher)]
    torch.testing.assert_close(
        bernoulli_divergence_sum(student, teacher, keep=keep, temperature=2.0),
        divergence_sum(*as_classes, keep=keep, temperature=2.0),
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("term", "keep_shape"), [(divergence_sum, (6,)), (bernoulli_divergence_sum, (6, 5))])
def test_a_kl_of_a_model_with_itself_is_zero_and_has_no_gradient(term, keep_shape, temperature):
    student = make_logits(0, 6, 5).requires_grad_()
    total = term(student, student.detach(), keep=torch.ones(keep_shape, dtype=torch.bool), temperature=temperature)
    total.backward()
    assert abs(total.item()) < 1e-6
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_a_kl_is_the_cross_entropy_less_the_teachers_entropy(temperature):
    # the two have one gradient, so that only the value tells which of them a metric is
    student, teacher = make_logits(0, 6, 5), make_logits(1, 6, 5)
    kl = divergence_sum(student, teacher, keep=torch.ones(6, dtype=torch.bool), temperature=temperature)
    cross_entropy = soft_cross_entropy_sum(student / temperature, (teacher / temperature).softmax(-1))
    rows = [brute_softmax(row, temperature) for row in teacher.tolist()]
    entropy = -sum(p * math.log(p) for row in rows for p in row)
    assert entropy > 1
    assert (cross_entropy - kl).item() == pytest.approx(entropy, rel=1e-5)

    keep = torch.ones(6, 5, dtype=torch.bool)
    bernoulli_kl = bernoulli_divergence_sum(student, teacher, keep=keep, temperature=temperature)
    cross_entropy = binary_cross_entropy_sum(student / temperature, (teacher / temperature).sigmoid())
    yes = [brute_logistic(value / temperature) for row in teacher.tolist() for value in row]
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in yes)
    assert entropy > 1
    assert (cross_entropy - bernoulli_kl).item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("scale", [60.0, 1e4])
def test_a_kl_of_certain_predictions_is_finite_and_never_below_zero(scale):
    student = torch.tensor([[scale, -scale, 0.0], [scale, -scale, 0.0]]).requires_grad_()
    teacher = torch.tensor([[scale, -scale, 0.0], [-scale, scale, 0.0]])
    rows, entries = torch.ones(2, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    for total in (
        divergence_sum(student, teacher, keep=rows, temperature=1.0),
        bernoulli_divergence_sum(student, teacher, keep=entries, temperature=1.0),
    ):
        student.grad = None
        total.backward()
        assert total.isfinite()
        assert total >= scale  # the second row: certain, and wrong
        assert student.grad.isfinite().all()
        assert student.grad[0].abs().max() < 1e-6


@pytest.mark.parametrize("kind", [kind for kind in SUMS if not FeatureDistance(kind).is_of_texts])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_distance_of_features_is_that_of_each_kept_token_summed_up(kind, normalise):
    student, teacher = make_logits(0, 2, 4, 6).requires_grad_(), make_logits(1, 2, 4, 6).requires_grad_()
    keep = torch.tensor([[True, True, False, False], [True, True, True, True]])
    total = FeatureDistance(kind, normalise).sum(student, teacher, keep=keep)
    total.backward()
    exact = student.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for t in range(4):
            if keep[b, t]:
                s, z = exact[b, t], teacher[b, t].detach().double()
                if normalise:
                    s, z = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (s, z))
                if kind == "mse":
                    expected = expected + sum((s[d] - z[d]) ** 2 for d in range(6)) / 6
                else:
                    product, norms = (
                        sum(s[d] * z[d] for d in range(6)),
                        [sum(x[d] ** 2 for d in range(6)) for x in (s, z)],
                    )
                    expected = expected + 1 - product / (norms[0] * norms[1]) ** 0.5
    expected.backward()
    torch.testing.assert_close(total.double(), expected, **TOLERANCE)
    torch.testing.assert_close(student.grad.double(), exact.grad, **TOLERANCE)
    assert teacher.grad is None


NAN = float("nan")
ROWS = torch.tensor([True, False, True, False])
ENTRIES = torch.tensor([[True, True, False], [False, False, False], [True, False, True], [False, False, False]])
TERMS = {
    "cross_entropy": (ROWS, lambda s, t: cross_entropy_sum(s, torch.where(ROWS, 2, -100))),
    "soft_cross_entropy": (
        ROWS,
        lambda s, t: soft_cross_entropy_sum(s, make_distributions(2, 4, 3).masked_fill(~ROWS.unsqueeze(-1), NAN)),
    ),
    "binary_cross_entropy": (
        ENTRIES,
        lambda s, t: binary_cross_entropy_sum(s, torch.eye(4, 3).masked_fill(~ENTRIES, NAN)),
    ),
    "squared_error": (ENTRIES, lambda s, t: squared_error_to(s, make_logits(2, 4, 3).masked_fill(~ENTRIES, NAN))),
    "kl": (ROWS, lambda s, t: divergence_sum(s, t, keep=ROWS, temperature=2.0)),
    "bernoulli_kl": (ENTRIES, lambda s, t: bernoulli_divergence_sum(s, t, keep=ENTRIES, temperature=2.0)),
    "squared_difference": (ENTRIES, lambda s, t: TASK_TERMS["regression"].prediction_sum(s, t, ENTRIES, 2.0)),
    "feature_mse": (ROWS, lambda s, t: feature_mse_sum(s[None], t[None], keep=ROWS[None])),
    "feature_cosine": (ROWS, lambda s, t: feature_cosine_sum(s[None], t[None], keep=ROWS[None])),
    "normalised_feature_mse": (
        ROWS,
        lambda s, t: feature_mse_sum(s[None], t[None], keep=ROWS[None], normalise=True),
    ),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("garbage", [0.0, 1e4, NAN, float("inf")])
def test_what_is_not_kept_has_no_value_and_a_gradient_of_zero_whatever_it_holds(name, garbage):
    keep, term = TERMS[name]
    ignored = ~(keep if keep.ndim == 2 else keep.unsqueeze(-1).expand(4, 3))
    student, teacher = make_logits(0, 4, 3).requires_grad_(), make_logits(1, 4, 3)
    total = term(student, teacher)
    total.backward()
    assert total > 0
    assert student.grad[ignored].abs().max() == 0
    filled = student.detach().masked_fill(ignored, garbage).requires_grad_()
    refilled = term(filled, teacher.masked_fill(ignored, -garbage))
    refilled.backward()
    assert torch.equal(refilled, total)
    assert torch.equal(filled.grad, student.grad)


@pytest.mark.parametrize("name", ["kl", "bernoulli_kl", "squared_difference", "feature_mse", "normalised_feature_mse"])
def test_a_teacher_that_is_not_finite_in_padding_leaves_the_students_gradient_alone(name):
    keep, term = TERMS[name]
    ignored = ~(keep if keep.ndim == 2 else keep.unsqueeze(-1).expand(4, 3))
    gradients = []
    for garbage in (0.0, NAN):
        student, teacher = make_logits(0, 4, 3).requires_grad_(), make_logits(1, 4, 3)
        term(student, teacher.masked_fill(ignored, garbage)).backward()
        gradients.append(student.grad)
    assert torch.equal(*gradients)


def test_numbers_are_ignored_where_they_are_nan_and_ids_where_they_are_the_ignored_label():
    assert kept_labels(torch.tensor([0, 3, -100, -1])).tolist() == [True, True, False, True]
    assert kept_labels(torch.tensor([0.0, -100.0, NAN])).tolist() == [True, True, False]


@pytest.mark.parametrize("term", [soft_cross_entropy_sum, binary_cross_entropy_sum, squared_error_to])
def test_labels_that_are_all_ignored_give_a_total_of_zero_and_no_gradient(term):
    logits = make_logits(0, 2, 3).requires_grad_()
    total = term(logits, torch.full((2, 3), NAN))
    total.backward()
    assert total.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TERMS)
def test_losses_of_half_precision_are_computed_in_fp32(name, dtype):
    _, term = TERMS[name]
    student, teacher = make_logits(0, 4, 3).to(dtype), make_logits(1, 4, 3).to(dtype)
    total = term(student, teacher)
    assert total.dtype == torch.float32
    assert total == term(student.float(), teacher.float())


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
