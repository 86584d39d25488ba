"""Each divergence, plain and in place, against torch.distributions and autograd in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ted_ds.numerics import chunks, vocabulary
from ted_ds.numerics.divergences import DIVERGENCES as FACTORIES
from ted_ds.numerics.divergences import Block, Softened, logs_beside_mixture, make_divergence
from ted_ds.numerics.losses import bernoulli_divergence_sum, divergence_sum
from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from tests.device import KERNELS, take_small_blocks
from tests.parity.test_vocabulary import TEACHER_HIDDEN, TOLERANCE, Case, Largest, assert_same
from tests.plain import DIVERGENCES, plain_divergence

# with the recipes' defaults, and near both ends
CASES = [
    *DIVERGENCES.items(),
    *[("jsd", beta) for beta in (0.5, 0.9, 0.001)],
    *[(kind, alpha) for kind in ("skew_kl", "skew_reverse_kl") for alpha in (0.5, 0.9, 0.001)],
]
OTHERS = [kind for kind in DIVERGENCES if kind != "kl"]
SPREADS = (0.01, 1.0, 30.0)
"""Of logits: predictions that nearly agree, that differ, and that are certain."""


def pair(seed: int, *shape: int, spread: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of a teacher and of a student."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    return teacher.to(dtype), student.to(dtype)


def plain(kind: str, parameter: float | None, teacher: Tensor, student: Tensor, keep: Tensor, heat: float) -> Any:
    """Sum over what is kept, and its gradient by the student's logits, in fp64."""
    leaf = student.double().clone().requires_grad_()
    total = plain_divergence(kind, parameter, teacher.double()[keep] / heat, leaf[keep] / heat).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0]


# fp32 against fp64: logs are rounded by their size, which grows with the spread. The worst seen over 40 seeds, of a sum
# of 24 rows: 1.6e-6 (6e-6 by the KL's own way, of logits that start elsewhere than at 0) and 5e-7 of its value; of a
# gradient, by spread: 3e-7, 1.5e-6 and 6e-5
def assert_close(total: Tensor, gradient: Tensor, expected: Tensor, slopes: Tensor, *, spread: float) -> None:
    assert abs(total.double() - expected) <= 1e-6 * expected + 1e-5, (total, expected)
    assert (gradient.double() - slopes).norm() <= 1e-6 * max(1.0, 4 * spread)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("heat", [1.0, 2.0, 0.7])
@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_a_sum_and_its_gradient_are_those_of_distributions(kind, parameter, heat, spread):
    teacher, student = pair(0, 24, 9, spread=spread)
    keep = torch.arange(24) % 4 != 1
    leaf = student.clone().requires_grad_()
    total = divergence_sum(leaf, teacher, keep=keep, temperature=heat, divergence=make_divergence(kind, parameter))
    total.backward()
    assert leaf.grad is not None
    assert_close(total.detach(), leaf.grad, *plain(kind, parameter, teacher, student, keep, heat), spread=spread)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("heat", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_of_a_yes_or_no_it_is_that_of_two_outcomes(kind, parameter, heat, spread):
    teacher, student = pair(0, 24, 3, spread=spread)
    keep = torch.rand(24, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    leaf, divergence = student.clone().requires_grad_(), make_divergence(kind, parameter)
    total = bernoulli_divergence_sum(leaf, teacher, keep=keep, temperature=heat, divergence=divergence)
    total.backward()
    assert leaf.grad is not None
    as_outcomes = [torch.stack([one, torch.zeros_like(one)], -1) for one in (teacher, student)]
    expected, slopes = plain(kind, parameter, *as_outcomes, keep, heat)
    assert_close(total.detach(), leaf.grad, expected, slopes[..., 0], spread=spread)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("heat", [1.0, 2.0, 0.7])
@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_in_place_it_is_the_same(kind, parameter, heat, spread):
    teacher, student = pair(0, 24, 9, spread=spread)
    expected, slopes = plain(kind, parameter, teacher, student, torch.ones(24, dtype=torch.bool), heat)
    for shift in (0.0, 7.0):  # another id, that is not shared, may have the largest logit
        own = student - student.amax(-1, keepdim=True) - shift
        block = Block(own.clone(), teacher - teacher.amax(-1, keepdim=True), torch.empty(24, 9), heat, shift == 0)
        values, found = make_divergence(kind, parameter).compare(block, 1 / heat)
        assert torch.equal(block.student, own)
        gradient = sum((one * factor for one, factor in found), start=torch.zeros(24, 9))
        assert values.shape == (24, 1)
        assert_close(values.sum(), gradient, expected, slopes, spread=max(spread, 1 + shift))


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_its_closed_formula_is_right_to_the_last_bits_of_fp64(kind, parameter):
    for spread in (0.01, 1.0, 10.0):
        teacher, student = pair(0, 24, 9, spread=spread, dtype=torch.float64)
        expected, slopes = plain(kind, parameter, teacher, student, torch.ones(24, dtype=torch.bool), 2.0)
        own, target = (one - one.amax(-1, keepdim=True) for one in (student, teacher))
        block = Block(own, target, torch.empty_like(own), 2.0, student_starts_at_0=True)
        values, found = make_divergence(kind, parameter).compare(block, 1 / 2.0)
        gradient = sum((one * factor for one, factor in found), start=torch.zeros_like(own))
        assert values.sum().item() == pytest.approx(expected.item(), rel=1e-9)
        assert (gradient - slopes).norm() <= 1e-9 * slopes.norm()


# --- from hidden states, chunk by chunk -------------------------------------------------------------------------------


@pytest.fixture
def many_small_chunks(monkeypatch):
    """Chunks of at least 5 rows, of which 2 at a time are brought to fp32."""
    monkeypatch.setattr(chunks, "LEAST_ROWS", 5)
    monkeypatch.setattr(vocabulary, "BLOCK_BYTES", {"cpu": 2 * 31 * 8, "cuda": 2 * 31 * 8})
    monkeypatch.setattr(chunks, "GRADIENT_ROWS", 7)
    take_small_blocks(monkeypatch)


@pytest.mark.usefixtures("many_small_chunks")
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    ("num_tokens", "keep", "size"), [(1, "all", 1), (3, "none", 1), (47, "some", 1), (123, "all", 5001)]
)
def test_chunks_give_the_sums_and_gradients_of_all_logits(kind, num_tokens, keep, size):
    case = Case(num_tokens, keep=keep)
    for heat in (0.5, 1.0, 3.0):
        arguments = {"temperature": heat, "divergence": kind}
        assert_same(case.fused(**arguments, size=size), case.plain(**arguments), TOLERANCE[torch.float64])


@pytest.mark.usefixtures("many_small_chunks")
@pytest.mark.parametrize("kind", OTHERS)
def test_ids_that_one_vocabulary_alone_has_take_no_part(kind):
    for vocab, teacher_vocab, shared in ((31, 40, 31), (40, 31, 29)):
        case = Case(13, vocab=vocab, teacher_vocab=teacher_vocab)
        case.labels.clamp_(max=shared - 1)
        arguments = {"shared": shared, "divergence": kind}
        assert_same(case.fused(**arguments), case.plain(**arguments), 1e-12)
    case = Case(5, vocab=40, dtype=torch.float32)
    with torch.no_grad():
        case.weight[35] = case.hidden.flatten(0, 1)[0] * 100  # exp of the distance to it is 0 in fp32
    arguments = {"shared": 31, "divergence": kind}
    assert_same(case.fused(**arguments), case.plain(**arguments), 1e-5)


@pytest.mark.usefixtures("many_small_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "tv"])
def test_half_precision_loses_no_more_than_with_the_kl(kind, dtype):
    case = Case(123, dtype=dtype)
    assert_same(case.fused(divergence=kind), case.plain(divergence=kind), TOLERANCE[dtype])


@pytest.mark.usefixtures("many_small_chunks")
@pytest.mark.parametrize("kind", OTHERS)
def test_the_logits_of_all_tokens_never_exist(kind):
    case = Case(200, keep="all")
    with Largest() as largest:
        case.fused(divergence=kind)
    assert largest.numel == 2 * 200 * TEACHER_HIDDEN  # the teacher's states


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_real_vocabulary_in_fp32(kind):
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(37, 64, generator=generator) for _ in range(2))
    weight, teacher_weight = (torch.randn(50257, 64, generator=generator) * 0.3 for _ in range(2))
    labels = torch.randint(50257, (37,), generator=generator)
    hidden.requires_grad_()
    teacher = TeacherPredictions(
        teacher_hidden, teacher_weight, None, 2.0, 1.0, divergence=make_divergence(kind, DIVERGENCES[kind])
    )
    weighted, _, total = vocabulary_losses(
        hidden, weight, None, VocabularyTargets(labels, 0.0, teacher, kernels=KERNELS)
    )
    (gradient,) = torch.autograd.grad(weighted, [hidden])
    leaf = hidden.detach().double().requires_grad_()
    softened = F.linear(teacher_hidden.double(), teacher_weight.double()) / 2, F.linear(leaf, weight.double()) / 2
    expected = plain_divergence(kind, DIVERGENCES[kind], *softened).sum()
    (slopes,) = torch.autograd.grad(expected, [leaf])
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient.double() - slopes).norm() <= 1e-5 * slopes.norm()


def of_logits(
    kind: str, parameter: float | None, teacher: Tensor, student: Tensor, heat: float
) -> tuple[Tensor, Tensor]:
    """The sum over rows, and its gradient by the student's logits, through heads that are the identity."""
    leaf, identity = student.clone().requires_grad_(), torch.eye(student.shape[1])
    measure = make_divergence(kind, parameter)
    predictions = TeacherPredictions(teacher, identity, None, heat, 1.0, divergence=measure)
    labels = torch.zeros(len(student), dtype=torch.long)
    targets = VocabularyTargets(labels, 0.0, predictions, kernels=KERNELS)
    weighted, _, total = vocabulary_losses(leaf, identity, None, targets)
    return total, torch.autograd.grad(weighted, leaf)[0]


@pytest.mark.usefixtures("many_small_chunks")
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_predictions_that_nearly_agree_or_are_certain(kind, parameter, spread):
    teacher, student = pair(3, 4, 19, spread=spread)
    total, gradient = of_logits(kind, parameter, teacher, student, 2.0)
    expected, slopes = plain(kind, parameter, teacher, student, torch.ones(4, dtype=torch.bool), 2.0)
    assert_close(total, gradient, expected, slopes, spread=spread)


@pytest.mark.parametrize("scale", [60.0, 1e4])
@pytest.mark.parametrize(
    ("kind", "parameter"), [*CASES, ("skew_kl", 1e-30), ("skew_reverse_kl", 1e-30), ("jsd", 1 - 1e-12)]
)
def test_logits_that_are_far_apart_have_finite_sums_and_gradients(kind, parameter, scale):
    teacher = torch.tensor([[scale, -scale, 0.0], [-scale, scale, 0.0], [scale, scale, -scale], [0.0, 0.0, 0.0]])
    student = torch.tensor([[scale, -scale, 0.0], [scale, -scale, 0.0], [0.0, -scale, scale], [scale, 0.0, 0.0]])
    total, gradient = of_logits(kind, parameter, teacher, student, 1.0)
    assert total.isfinite()
    assert total >= -1e-6
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() <= 1e-6  # that row agrees


# --- what a divergence is -----------------------------------------------------------------------------------------


def rows_and_slopes(
    kind: str, parameter: float | None, teacher: Tensor, student: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Of rows of logits, their values and gradients: plainly, and in place."""
    leaf, divergence = student.clone().requires_grad_(), make_divergence(kind, parameter)
    logs = [F.log_softmax(one, -1) for one in (teacher, leaf)]
    values = divergence.of_rows(*(Softened(one.exp(), one) for one in logs))
    own, target = (one - one.amax(-1, keepdim=True) for one in (student, teacher))
    in_place, found = divergence.compare(Block(own, target, torch.empty_like(own), 1.0, True), 1.0)
    gradient = sum((one * factor for one, factor in found), start=torch.zeros_like(own))
    return [(values.detach(), torch.autograd.grad(values.sum(), leaf)[0]), (in_place.squeeze(-1), gradient)]


@pytest.mark.parametrize("scale", [60.0, 1e4])
@pytest.mark.parametrize(
    ("kind", "parameter"), [*CASES, ("skew_kl", 1e-30), ("skew_reverse_kl", 1e-30), ("jsd", 1 - 1e-12)]
)
def test_certain_predictions_have_finite_values_and_gradients(kind, parameter, scale):
    teacher = torch.tensor([[scale, -scale, 0.0], [-scale, scale, 0.0], [scale, scale, -scale], [0.0, 0.0, 0.0]])
    student = torch.tensor([[scale, -scale, 0.0], [scale, -scale, 0.0], [0.0, -scale, scale], [scale, 0.0, 0.0]])
    for values, gradient in rows_and_slopes(kind, parameter, teacher, student):
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        assert values[0].abs() <= 1e-6
        assert gradient[0].abs().max() <= 1e-6
        # the second row: certain, and wrong
        largest = {"kl": 2 * scale, "reverse_kl": 2 * scale, "tv": 1.0}.get(kind)
        if largest is None:
            assert parameter is not None
            entropy = -parameter * math.log(parameter) - (1 - parameter) * math.log1p(-parameter)
            largest = entropy if kind == "jsd" else min(-math.log(parameter), 2 * scale)
        assert values[1].item() == pytest.approx(largest, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_of_a_model_with_itself_it_is_nothing(kind, parameter, scale):
    logits, _ = pair(3, 6, 40, spread=scale)
    for values, gradient in rows_and_slopes(kind, parameter, logits, logits.clone()):
        assert values.abs().max() <= (1e-6 if kind == "kl" else 0.0)
        assert gradient.abs().max() <= 3e-7


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_it_is_never_below_zero(kind, parameter):
    for spread in (1e-3, 0.1, 1.0, 20.0):
        for values, _ in rows_and_slopes(kind, parameter, *pair(5, 200, 12, spread=spread)):
            assert values.min() >= -3e-7


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_near_agreement_it_is_so_many_times_the_kl(kind, parameter):
    """As docs/divergences.md says, for whoever chooses ``kl_weight``."""
    teacher, other = pair(7, 50, 12, spread=1.0, dtype=torch.float64)
    student = teacher + 1e-4 * other
    (_, of_kl), _ = rows_and_slopes("kl", None, teacher, student)
    (_, gradient), _ = rows_and_slopes(kind, parameter, teacher, student)
    if kind == "tv":  # its gradient does not vanish there at all
        assert gradient.norm() > 100 * of_kl.norm()
        return
    factor = {
        "kl": lambda _: 1.0,
        "reverse_kl": lambda _: 1.0,
        "jsd": lambda beta: beta * (1 - beta),
        "skew_kl": lambda alpha: (1 - alpha) ** 2,
        "skew_reverse_kl": lambda alpha: (1 - alpha) ** 2,
    }[kind](parameter)
    assert (gradient - factor * of_kl).norm() <= 1e-3 * factor * of_kl.norm()


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_with_the_temperature_its_gradient_shrinks_with_the_square_and_that_of_tv_with_itself(kind, parameter):
    teacher, student = pair(8, 50, 12, spread=1.0, dtype=torch.float64)
    keep = torch.ones(50, dtype=torch.bool)
    hot, hotter = (plain(kind, parameter, teacher, student, keep, heat)[1].norm() for heat in (300.0, 600.0))
    assert hot / hotter == pytest.approx(2.0 if kind == "tv" else 4.0, rel=0.02)


def test_jsd_and_skewed_kls_are_between_the_kls():
    teacher, student = pair(9, 50, 12, spread=2.0)

    def of(kind: str, parameter: float | None = None) -> Tensor:
        return rows_and_slopes(kind, parameter, teacher, student)[0][0]

    torch.testing.assert_close(of("skew_kl", 1e-7), of("kl"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of("skew_reverse_kl", 1e-7), of("reverse_kl"), rtol=1e-4, atol=1e-6)
    # GKD, section 3: beta towards 0 gives the KL, towards 1 the reverse KL
    torch.testing.assert_close(of("jsd", 1e-5) / 1e-5, of("kl"), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(of("jsd", 1 - 1e-5) / 1e-5, of("reverse_kl"), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("share", [1e-12, 0.1, 0.5, 1 - 1e-12])
def test_the_logs_beside_a_mixture_have_gradients_at_every_distance(share):
    distances = torch.tensor([-1e4, -80.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 80.0, 1e4])
    leaf, exact = distances.clone().requires_grad_(), distances.double().requires_grad_()
    found = logs_beside_mixture(leaf, share)
    mixture = torch.logaddexp(exact + math.log(share), torch.full_like(exact, math.log1p(-share)))
    for log, expected in zip(found, (exact - mixture, -mixture), strict=True):
        torch.testing.assert_close(log.double(), expected, rtol=1e-6, atol=2e-7)
        slopes = torch.autograd.grad(log.sum(), leaf, retain_graph=True)[0]
        wanted = torch.autograd.grad(expected.sum(), exact, retain_graph=True)[0]
        torch.testing.assert_close(slopes.double(), wanted, rtol=1e-5, atol=1e-7)


def test_a_recipe_has_these_and_no_others():
    assert FACTORIES.keys() == DIVERGENCES.keys()
