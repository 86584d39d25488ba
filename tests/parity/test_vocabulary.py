"""Cross-entropy and KL from hidden states, chunk by chunk, against the plain losses of all logits in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ted_ds.numerics import chunks, vocabulary
from ted_ds.numerics.divergences import make_divergence
from ted_ds.numerics.logits import PLAIN, LogitRule
from ted_ds.numerics.losses import cross_entropy_sum, divergence_sum, kept_labels
from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses, vocabulary_scores
from tests.device import DEVICE, KERNELS, take_small_blocks
from tests.plain import DIVERGENCES, plain_divergence

HIDDEN, TEACHER_HIDDEN = 12, 20
# of each gradient's norm; the worst seen were 3e-15, 3e-7, 5e-3, 8e-4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def many_small_chunks(monkeypatch):
    """Chunks of at least 5 rows, of which 2 at a time are brought to fp32."""
    monkeypatch.setattr(chunks, "LEAST_ROWS", 5)
    monkeypatch.setattr(vocabulary, "BLOCK_BYTES", {"cpu": 2 * 31 * 8, "cuda": 2 * 31 * 8})
    monkeypatch.setattr(chunks, "GRADIENT_ROWS", 7)
    take_small_blocks(monkeypatch)


def logits_by(rule: LogitRule, products: Tensor) -> Tensor:
    """As Granite and Gemma have it."""
    logits = products / rule.divisor
    if rule.bound is None:
        return logits
    return torch.tanh(logits / rule.bound) * rule.bound


RULES = [LogitRule(2.5), LogitRule(bound=1.5), LogitRule(0.4, 3.0)]


class Case:
    """Random states, heads and labels of ``num_tokens`` tokens in two rows."""

    def __init__(
        self,
        num_tokens: int,
        *,
        dtype: torch.dtype = torch.float64,
        vocab: int = 31,
        teacher_vocab: int = 31,
        keep: str = "some",
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator, dtype=torch.float64) * std).to(dtype)

        self.hidden = normal(2, num_tokens, HIDDEN).requires_grad_()
        self.weight = normal(vocab, HIDDEN, std=0.4).requires_grad_()
        self.bias = normal(vocab).requires_grad_() if bias else None
        self.teacher_hidden = normal(2, num_tokens, TEACHER_HIDDEN)
        self.teacher_weight = normal(teacher_vocab, TEACHER_HIDDEN, std=0.4)
        self.labels = torch.randint(min(vocab, teacher_vocab), (2, num_tokens), generator=generator)
        if keep == "some":
            self.labels[torch.rand(2, num_tokens, generator=generator) < 0.4] = -100
        elif keep == "none":
            self.labels[:] = -100
        self.predicted: Tensor | None = None
        """Where the divergence is, where that is not where labels are kept."""
        self.rule = self.teacher_rule = PLAIN

    @property
    def trained(self) -> list[Tensor]:
        return [one for one in (self.hidden, self.weight, self.bias) if one is not None]

    def targets(
        self,
        *,
        weights: tuple[float, float],
        temperature: float,
        shared: int | None,
        size: int,
        divergence: str = "kl",
    ) -> Any:
        weight = weights[1] if self.predicted is None else torch.tensor(weights[1], dtype=torch.float64)
        kept = (self.teacher_hidden.to(DEVICE), self.teacher_weight.to(DEVICE))
        learned_from = (*kept, None, temperature, weight if isinstance(weight, float) else weight.to(DEVICE), shared)
        measure = make_divergence(divergence, DIVERGENCES[divergence])
        teacher = TeacherPredictions(*learned_from, measure, self.teacher_rule)
        predicted = None if self.predicted is None else self.predicted.to(DEVICE)
        return VocabularyTargets(
            self.labels.to(DEVICE), weights[0], teacher, max_chunk_bytes=size, predicted=predicted, kernels=KERNELS
        )

    def fused(
        self,
        *,
        weights: tuple[float, float] = (0.7, 2.5),
        temperature: float = 2.0,
        shared: int | None = None,
        size: int = 1,
        divergence: str = "kl",
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The three sums, and the gradients of 1.3 times the first."""
        chosen = {"weights": weights, "temperature": temperature, "shared": shared, "divergence": divergence}
        targets = self.targets(**chosen, size=size)
        trained = [None if one is None else one.to(DEVICE) for one in (self.hidden, self.weight, self.bias)]
        sums = [one.cpu() for one in vocabulary_losses(*trained, targets, self.rule)]
        return sums, list(torch.autograd.grad(1.3 * sums[0], self.trained))

    def plain(
        self,
        *,
        weights: tuple[float, float] = (0.7, 2.5),
        temperature: float = 2.0,
        shared: int | None = None,
        divergence: str = "kl",
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same from all logits, in fp64 throughout."""
        leaves = [one.detach().double().requires_grad_() for one in self.trained]
        hidden, weight, *bias = leaves
        logits = logits_by(self.rule, F.linear(hidden, weight, bias[0] if bias else None))
        teacher_products = F.linear(self.teacher_hidden.double(), self.teacher_weight.double())
        teacher_logits = logits_by(self.teacher_rule, teacher_products)
        kept = kept_labels(self.labels)
        predicted = kept if self.predicted is None else self.predicted
        # (the plain losses are fp32; these are their formulas in fp64)
        task = F.cross_entropy(logits[kept], self.labels[kept], reduction="sum")
        mine, theirs = (one[predicted][:, :shared] / temperature for one in (logits, teacher_logits))
        total = plain_divergence(divergence, DIVERGENCES[divergence], theirs, mine).sum()
        weighted = weights[0] * task + weights[1] * total
        return [weighted, task, total], list(torch.autograd.grad(1.3 * weighted, leaves))


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        assert (one.double() - other).norm() <= tolerance * max(other.norm().item(), 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keep", ["all", "some", "none"])
@pytest.mark.parametrize("num_tokens", [1, 3, 47, 123])
def test_sums_and_gradients_are_those_of_all_logits(num_tokens, keep, dtype):
    case = Case(num_tokens, keep=keep, dtype=dtype)
    assert_same(case.fused(), case.plain(), TOLERANCE[dtype])
    if keep == "none":
        assert [one.item() for one in case.fused()[0]] == [0, 0, 0]


@pytest.mark.parametrize("size", [1, 6 * 2 * 31 * 8, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_size_of_a_chunk_changes_nothing(size, dtype):
    case = Case(47, dtype=dtype)
    assert_same(case.fused(size=size), case.plain(), TOLERANCE[dtype])


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["everywhere", "fewer", "others", "nowhere", "as labels"])
def test_the_two_losses_may_be_of_different_rows(where, dtype, divergence):
    case = Case(47, dtype=dtype)
    kept, some = kept_labels(case.labels), torch.rand(2, 47, generator=torch.Generator().manual_seed(1)) < 0.5
    case.predicted = {
        "everywhere": torch.ones_like(kept),
        "fewer": kept & some,
        "others": ~kept,
        "nowhere": torch.zeros_like(kept),
        "as labels": kept,
    }[where]
    assert_same(case.fused(divergence=divergence), case.plain(divergence=divergence), TOLERANCE[dtype])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1e-3, 40.0), (40.0, 1e-3), (0.0, 0.0)])
def test_any_weights_where_the_two_losses_are_of_different_rows(weights):
    case = Case(13, bias=True, teacher_vocab=40)
    case.labels.clamp_(max=28)
    case.predicted = torch.rand(2, 13, generator=torch.Generator().manual_seed(2)) < 0.5
    assert_same(case.fused(weights=weights, shared=29), case.plain(weights=weights, shared=29), 1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 40.0), (1e-3, 1e-6), (0.0, 0.0)])
def test_any_weights_and_temperature(weights, temperature):
    case = Case(13)
    arguments = {"weights": weights, "temperature": temperature}
    assert_same(case.fused(**arguments), case.plain(**arguments), 1e-12)


@pytest.mark.parametrize(("vocab", "teacher_vocab", "shared"), [(31, 40, 31), (40, 31, 31), (40, 50, 29), (31, 31, 30)])
def test_vocabularies_that_are_padded_differently(vocab, teacher_vocab, shared):
    case = Case(13, vocab=vocab, teacher_vocab=teacher_vocab)
    case.labels.clamp_(max=shared - 1)
    assert_same(case.fused(shared=shared), case.plain(shared=shared), 1e-12)


def test_a_padded_id_of_high_probability_does_not_hide_the_others():
    case = Case(5, vocab=40, dtype=torch.float32)
    with torch.no_grad():
        case.weight[35] = case.hidden.flatten(0, 1)[0] * 100  # exp of the distance to it is 0 in fp32
    assert_same(case.fused(shared=31), case.plain(shared=31), 1e-5)


def test_a_head_with_a_bias():
    case = Case(13, bias=True)
    assert_same(case.fused(), case.plain(), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("teacher_rule", [PLAIN, LogitRule(3.0, 2.0)], ids=str)
@pytest.mark.parametrize("rule", [PLAIN, *RULES], ids=str)
def test_logits_that_are_divided_or_brought_under_a_bound(rule, teacher_rule, dtype):
    case = Case(47, bias=True, dtype=dtype)
    case.rule, case.teacher_rule = rule, teacher_rule
    assert_same(case.fused(), case.plain(), TOLERANCE[dtype])


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_for_logits_where_all_else_differs(rule, divergence):
    case = Case(23, bias=True, vocab=40, teacher_vocab=33)
    case.labels.clamp_(max=28)
    case.predicted = torch.rand(2, 23, generator=torch.Generator().manual_seed(2)) < 0.5
    case.rule, case.teacher_rule = rule, LogitRule(bound=2.0)
    more = {"shared": 29, "divergence": divergence}
    assert_same(case.fused(**more), case.plain(**more), 1e-12)


@pytest.mark.parametrize("rule", [PLAIN, *RULES], ids=str)
def test_a_rule_in_place_and_its_slopes_are_those_of_the_plain_formula(rule):
    products = (torch.randn(50, dtype=torch.float64) * 4).requires_grad_()
    expected = logits_by(rule, products)
    (slopes,) = torch.autograd.grad(expected.sum(), products)
    for logits in (rule(products), rule.write(products.detach().clone())):
        torch.testing.assert_close(logits, expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(rule.write_slopes(products.detach().clone()), slopes, rtol=1e-12, atol=1e-14)
    assert rule.is_plain == (rule == PLAIN)


def test_a_student_that_is_its_teacher_has_no_kl_at_all():
    case = Case(47, dtype=torch.float32)
    case.teacher_hidden, case.teacher_weight = case.hidden.detach(), case.weight.detach()
    sums, gradients = case.fused(weights=(0.0, 1.0))
    assert abs(sums[2].item()) < 1e-5
    assert all(one.abs().max() < 1e-6 for one in gradients)


def test_without_a_teacher_it_is_the_cross_entropy():
    case = Case(47)
    weighted, task, kl = vocabulary_losses(
        case.hidden, case.weight, None, VocabularyTargets(case.labels, 0.5, kernels=KERNELS)
    )
    expected = cross_entropy_sum(F.linear(case.hidden, case.weight), case.labels)
    torch.testing.assert_close(task, expected.double(), rtol=1e-6, atol=0)
    assert weighted.item() == 0.5 * task.item()
    assert kl.item() == 0
    wanted = torch.autograd.grad(0.5 * expected, case.trained)
    for one, other in zip(torch.autograd.grad(weighted, case.trained), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_plain_losses_are_its_twins():
    case = Case(47, dtype=torch.float32)
    logits, teacher_logits = F.linear(case.hidden, case.weight), F.linear(case.teacher_hidden, case.teacher_weight)
    (_, task, kl), _ = case.fused(temperature=3.0)
    assert task.item() == pytest.approx(cross_entropy_sum(logits, case.labels).item(), rel=1e-5)
    twin = divergence_sum(logits, teacher_logits, keep=kept_labels(case.labels), temperature=3.0)
    assert kl.item() == pytest.approx(twin.item(), rel=1e-5)


class Recomputed(torch.autograd.Function):
    """A function of which each backward pass makes a new graph: gradcheck goes backward more than once."""

    @staticmethod
    def forward(ctx: Any, function: Any, *inputs: Tensor) -> Tensor:
        ctx.function, ctx.inputs = function, inputs
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in ctx.inputs]
            return None, *torch.autograd.grad(ctx.function(*leaves), leaves, upstream)


def gradcheck(function: Any, inputs: Any) -> bool:
    return torch.autograd.gradcheck(lambda *given: Recomputed.apply(function, *given), tuple(inputs))


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias):
    case = Case(3, bias=bias, keep="all")

    def weighted(*trained: Tensor) -> Tensor:
        hidden, weight, *rest = trained
        targets = case.targets(weights=(0.7, 2.5), temperature=2.0, shared=None, size=1)
        return vocabulary_losses(hidden, weight, rest[0] if rest else None, targets)[0]

    assert gradcheck(weighted, case.trained)


def test_what_is_not_kept_is_never_read():
    case = Case(23)
    ignored = case.labels == -100
    expected = case.plain()
    with torch.no_grad():
        case.hidden[ignored] = torch.nan
        case.teacher_hidden[ignored] = torch.inf
    sums, gradients = case.fused()
    assert_same((sums, gradients), expected, 1e-12)
    assert gradients[0][ignored].abs().max() == 0


def test_what_neither_of_two_losses_wants_is_never_read():
    case = Case(23)
    case.predicted = torch.zeros_like(case.labels, dtype=torch.bool)
    case.predicted[0] = True
    ignored = (case.labels == -100) & ~case.predicted
    expected = case.plain()
    with torch.no_grad():
        case.hidden[ignored] = torch.nan
        case.teacher_hidden[ignored] = torch.inf
    sums, gradients = case.fused()
    assert_same((sums, gradients), expected, 1e-12)
    assert gradients[0][ignored].abs().max() == 0


def test_only_what_is_asked_for_gets_a_gradient():
    case = Case(5)
    case.weight.requires_grad_(False)
    weighted, *_ = vocabulary_losses(case.hidden, case.weight, None, VocabularyTargets(case.labels, kernels=KERNELS))
    (gradient,) = torch.autograd.grad(weighted, [case.hidden])
    assert gradient.shape == case.hidden.shape
    with torch.no_grad():
        weighted, *_ = vocabulary_losses(
            case.hidden, case.weight, None, VocabularyTargets(case.labels, kernels=KERNELS)
        )
    assert not weighted.requires_grad


def test_gradients_add_up_over_microbatches_and_uses_of_a_tied_weight():
    cases = [Case(7, seed=seed) for seed in (1, 2)]
    weight = cases[0].weight
    for case in cases:
        case.weight = weight
        targets = case.targets(weights=(0.7, 2.5), temperature=2.0, shared=None, size=1)
        embedded = F.embedding(case.labels.clamp(min=0), weight)  # the same weight, on the other side of the model
        (vocabulary_losses(embedded + case.hidden, weight, None, targets)[0]).backward()
    expected = torch.zeros_like(weight)
    for case in cases:
        leaf = weight.detach().clone().requires_grad_()
        embedded = F.embedding(case.labels.clamp(min=0), leaf) + case.hidden.detach()
        logits, kept = F.linear(embedded, leaf), case.labels != -100
        teacher_logits = F.linear(case.teacher_hidden, case.teacher_weight)
        task = F.cross_entropy(logits[kept], case.labels[kept], reduction="sum")
        both = [F.log_softmax(one[kept] / 2.0, -1) for one in (logits, teacher_logits)]
        kl = F.kl_div(*both, reduction="sum", log_target=True)
        expected += torch.autograd.grad(0.7 * task + 2.5 * kl, leaf)[0]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected, rtol=1e-10, atol=1e-12)


def test_a_second_backward_is_refused_and_not_wrong():
    case = Case(5)
    weighted, *_ = vocabulary_losses(case.hidden, case.weight, None, VocabularyTargets(case.labels, kernels=KERNELS))
    weighted.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by the first backward"):
        weighted.backward()


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-20])
def test_loss_scales_and_small_shares_neither_overflow_nor_vanish_in_fp16(scale):
    case = Case(47, dtype=torch.float16)
    targets = case.targets(weights=(1e-4, 3e-4), temperature=2.0, shared=None, size=1)
    weighted, *_ = vocabulary_losses(case.hidden, case.weight, None, targets)
    gradients = torch.autograd.grad(weighted * scale, case.trained)
    _, expected = case.plain(weights=(1e-4 * scale / 1.3, 3e-4 * scale / 1.3))
    if scale > 1:
        for one, other in zip(gradients, expected, strict=True):
            assert (one.double() - other).norm() < 3e-3 * other.norm()
    else:  # too small for fp16 itself, and still not NaN
        assert all(one.isfinite().all() for one in gradients)


def test_autocast_computes_in_its_precision_and_keeps_the_weights():
    case = Case(47, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = case.fused()
    assert all(one.dtype == torch.float32 for one in got[1])
    assert_same(got, case.plain(), TOLERANCE[torch.bfloat16])


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_the_logits_of_all_tokens_never_exist():
    case = Case(200, vocab=31, keep="all")
    with Largest() as plain:
        case.plain()
    with Largest() as fused:
        case.fused()
    assert plain.numel == 2 * 200 * 31
    assert fused.numel == 2 * 200 * TEACHER_HIDDEN  # the teacher's states


def test_fp16_sums_over_many_tokens_do_not_overflow():
    case = Case(3000, dtype=torch.float16, keep="all")
    with torch.no_grad():
        case.hidden[..., 0] = 40
        case.labels[:] = 3
    got, expected = case.fused(size=10**9), case.plain()  # one chunk
    share = 1 / case.labels.numel()  # as the step divides
    targets = case.targets(weights=(0.7, 2.5), temperature=2.0, shared=None, size=10**9)
    weighted, *_ = vocabulary_losses(case.hidden, case.weight, None, targets)
    gradients = torch.autograd.grad(1.3 * weighted * share, case.trained)
    assert got[0][0].isfinite()
    assert (expected[1][1].abs().max() > 65504).item()
    for one, other in zip(gradients, expected[1], strict=True):
        assert (one.double() - other * share).norm() < 3e-3 * (other * share).norm()


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [PLAIN, LogitRule(0.4, 3.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep", ["all", "some", "none"])
def test_scores_are_the_cross_entropy_and_how_many_have_the_largest_logit(monkeypatch, keep, bias, rule):
    monkeypatch.setattr(vocabulary, "chunk_bytes", lambda _device: 7 * 31 * 8)
    case = Case(23, keep=keep, bias=bias)
    logits = logits_by(rule, F.linear(case.hidden, case.weight, case.bias).detach())
    labels = case.labels.clone()
    labels[:, ::2] = logits.argmax(-1)[:, ::2].where(labels[:, ::2] != -100, torch.tensor(-100))
    loss, num_right = vocabulary_scores(case.hidden, case.weight, case.bias, labels, rule)
    assert not loss.requires_grad
    kept = kept_labels(labels)
    expected = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    right = int((logits.argmax(-1) == labels).sum())
    assert num_right == right
    assert right >= kept[:, ::2].sum()


def test_of_several_largest_logits_the_first_is_right():
    hidden, weight = torch.ones(1, 2, 1), torch.tensor([[0.0], [1.0], [1.0]])
    assert vocabulary_scores(hidden, weight, None, torch.tensor([[1, 2]]))[1] == 1
