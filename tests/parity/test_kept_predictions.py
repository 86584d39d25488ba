"""What is learned of a teacher's most probable ids, against all its logits in fp64."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ted_ds.numerics import chunks, keeping, vocabulary
from ted_ds.numerics.divergences import make_divergence
from ted_ds.numerics.keeping import Keeping, Kept, keep_drawn, keep_top, lost
from ted_ds.numerics.logits import LogitRule
from ted_ds.numerics.losses import kept_labels
from ted_ds.numerics.teacher_predictions import DrawnPredictions, KeptPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.planning import filling
from ted_ds.teacher_cache.token_record import Answer
from tests.distributed.kept_answers import plain_divergences
from tests.parity.test_vocabulary import Case, assert_same
from tests.plain import DIVERGENCES, plain_divergence

VOCAB, SHARED = 31, 29
# of each gradient's norm, against fp64 from the same numbers; the worst seen were 2e-15 and 6e-7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@pytest.fixture(autouse=True)
def many_small_chunks(monkeypatch):
    """Chunks of at least 5 rows, of which 2 at a time are brought to fp32, or 7 to be kept."""
    monkeypatch.setattr(chunks, "LEAST_ROWS", 5)
    for module, rows in ((vocabulary, 2), (keeping, 7)):
        monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": rows * VOCAB * 8, "cuda": rows * VOCAB * 8})


def rows_of(case: Case, values: Tensor) -> Tensor:
    """Of those where logits are wanted."""
    wanted = kept_labels(case.labels) if case.predicted is None else kept_labels(case.labels) | case.predicted
    return values[wanted]


def keep(case: Case, num_kept: int, *, temperature: float = 2.0, num_ids: int = VOCAB) -> Kept:
    hidden, labels = rows_of(case, case.teacher_hidden), rows_of(case, case.labels)
    keeping = Keeping(num_kept, num_ids, temperature)
    return keep_top(hidden, case.teacher_weight, None, labels, keeping, case.teacher_rule)


def learned(case: Case, kept: Kept, *, temperature: float = 2.0, num_ids: int = VOCAB, divergence: str = "kl") -> Any:
    """The three sums, and the gradients of 1.3 times the first."""
    measure = make_divergence(divergence, DIVERGENCES[divergence])
    weight = 2.5 if case.predicted is None else torch.tensor(2.5, dtype=torch.float64)
    teacher = KeptPredictions(kept.ids, kept.numbers, temperature, weight, num_ids, measure)
    targets = VocabularyTargets(case.labels, 0.7, teacher, max_chunk_bytes=1, predicted=case.predicted)
    sums = vocabulary_losses(case.hidden, case.weight, case.bias, targets, case.rule)
    return list(sums), list(torch.autograd.grad(1.3 * sums[0], case.trained))


def plain_learned(case: Case, num_kept: int, *, temperature: float, num_ids: int, divergence: str) -> Any:
    """The same from all logits of both, put together in fp64."""
    leaves = [one.detach().double().requires_grad_() for one in case.trained]
    logits = F.linear(*leaves)
    theirs = F.linear(case.teacher_hidden.double(), case.teacher_weight.double())
    kept = kept_labels(case.labels)
    predicted = kept if case.predicted is None else case.predicted
    task = F.cross_entropy(logits[kept], case.labels[kept], reduction="sum")
    total = logits.sum() * 0
    for own, other in zip(logits[predicted], theirs[predicted], strict=True):
        p, q = ((one[:num_ids] / temperature).softmax(-1) for one in (other, own))
        chosen = p.argsort(descending=True)[:num_kept]
        merged = [torch.cat([one[chosen], one.sum()[None] - one[chosen].sum()[None]]) for one in (p, q)]
        if num_kept == num_ids:
            merged = [one[:-1] for one in merged]
        both = [one[None].log() for one in merged]
        total = total + plain_divergence(divergence, DIVERGENCES[divergence], *both).sum()
    weighted = 0.7 * task + 2.5 * total
    return [weighted, task, total], list(torch.autograd.grad(1.3 * weighted, leaves))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_kept", "num_ids"), [(1, VOCAB), (7, SHARED), (30, VOCAB)])
def test_the_rest_is_one_outcome(divergence, dtype, num_kept, num_ids):
    case = Case(23, dtype=dtype)
    chosen = {"temperature": 2.0, "num_ids": num_ids}
    got = learned(case, keep(case, num_kept, **chosen), **chosen, divergence=divergence)
    assert_same(got, plain_learned(case, num_kept, **chosen, divergence=divergence), TOLERANCE[dtype])


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("rule", [None, LogitRule(0.4, 3.0)])
@pytest.mark.parametrize("keep_labels", ["all", "some", "none"])
def test_of_the_whole_vocabulary_nothing_is_lost(divergence, rule, keep_labels):
    case = Case(23, keep=keep_labels)
    case.rule = case.teacher_rule = rule or case.rule
    got = learned(case, keep(case, VOCAB), divergence=divergence)
    assert_same(got, case.plain(divergence=divergence), TOLERANCE[torch.float64])
    assert_same(got, case.fused(divergence=divergence), TOLERANCE[torch.float64])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_where_labels_and_predictions_stand_apart(temperature):
    case = Case(23)
    case.predicted = torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) < 0.5
    got = learned(case, keep(case, VOCAB, temperature=temperature), temperature=temperature)
    assert_same(got, case.plain(temperature=temperature), TOLERANCE[torch.float64])


@pytest.mark.parametrize("num_kept", [1, 4, 16, 24])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_values_and_gradients_keep_their_bounds(num_kept, divergence):
    """By the logits themselves: a head that is the identity."""
    generator = torch.Generator().manual_seed(num_kept)
    theirs, own = (torch.randn(40, VOCAB, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    identity, labels = torch.eye(VOCAB, dtype=torch.float64), torch.full((40,), 3)
    measure = make_divergence(divergence, DIVERGENCES[divergence])

    def of(num: int) -> tuple[Tensor, Tensor, Tensor]:
        kept = keep_top(theirs, identity, None, labels, Keeping(num, VOCAB, 1.0))
        leaf = own.clone().requires_grad_()
        teacher = KeptPredictions(kept.ids, kept.numbers, 1.0, 1.0, VOCAB, measure)
        sums = vocabulary_losses(leaf, identity, None, VocabularyTargets(labels, 0.0, teacher))
        return sums[2], torch.autograd.grad(sums[0], leaf)[0], kept.numbers[:, -1].exp()

    (some, of_some, rest), (whole, of_whole, _) = of(num_kept), of(VOCAB)
    assert 0 <= some <= whole
    if divergence == "kl":
        difference = (of_some - of_whole).abs().sum(-1)
        assert bool((difference <= 2 * rest + 1e-12).all())
        assert bool((difference > 0).all())


def test_a_student_that_is_sure_learns_of_the_rest():
    """Of what it gives the rest, fp32 has nothing beside 1."""
    theirs = torch.zeros(1, 5)
    own = torch.tensor([[60.0, 0.0, -1.0, -2.0, -3.0]], requires_grad=True)
    kept = keep_top(theirs, torch.eye(5), None, torch.tensor([0]), Keeping(1, 5, 1.0))
    teacher = KeptPredictions(torch.tensor([[0]]), kept.numbers, 1.0, 1.0, 5)
    sums = vocabulary_losses(own, torch.eye(5), None, VocabularyTargets(torch.tensor([0]), 0.0, teacher))
    (gradient,) = torch.autograd.grad(sums[0], own)
    shares = torch.tensor([0.0, -1.0, -2.0, -3.0]).softmax(-1)
    torch.testing.assert_close(gradient[0], torch.cat([torch.tensor([0.8]), -0.8 * shares]))


def test_what_is_kept_are_the_largest_and_the_teachers_own_loss():
    case = Case(23, dtype=torch.float64)
    kept = keep(case, 4, temperature=2.0, num_ids=SHARED)
    logits = F.linear(rows_of(case, case.teacher_hidden), case.teacher_weight)
    labels = rows_of(case, case.labels)
    p = (logits[:, :SHARED] / 2).softmax(-1)
    top, ids = p.topk(4)
    assert torch.equal(kept.ids, ids)
    torch.testing.assert_close(kept.numbers.exp(), torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1))
    torch.testing.assert_close(kept.losses, F.cross_entropy(logits, labels, reduction="none"))
    found = lost(rows_of(case, case.teacher_hidden), case.teacher_weight, None, kept, Keeping(4, SHARED, 2.0))
    spread = ((1 - top.sum(-1, keepdim=True)) / (SHARED - 4)).expand_as(p).scatter(-1, ids, top)
    expected = torch.stack([(p * (p / spread).log()).sum(), (1 - top.sum(-1)).sum()])
    torch.testing.assert_close(found, expected)


# --- drawn ------------------------------------------------------------------------------------------------------------

NUM_STARTS = 60


def grid(num_rows: int) -> Iterator[Tensor]:
    """All starts, as near as they are to each other."""
    for start in range(NUM_STARTS):
        yield torch.full((num_rows,), (start + 0.5) / NUM_STARTS, dtype=torch.float64)


def test_each_id_is_drawn_as_often_as_it_is_probable():
    case = Case(30, vocab=VOCAB)
    keeping = Keeping(16, SHARED, 2.0, drawn=True)
    hidden, labels = rows_of(case, case.teacher_hidden), rows_of(case, case.labels)
    logits = F.linear(hidden, case.teacher_weight)
    p = (logits[:, :SHARED] / 2).softmax(-1)
    total = torch.zeros_like(p)
    for starts in grid(len(hidden)):
        kept = keep_drawn(hidden, case.teacher_weight, None, labels, keeping, starts=starts)
        counts = torch.zeros_like(p).scatter_add_(-1, kept.ids, kept.numbers[:, :-1])
        assert bool(((counts - 16 * p).abs() < 1 + 1e-9).all())
        assert torch.equal(counts.sum(-1), torch.full((len(p),), 16.0, dtype=torch.float64))
        total += counts
    # a count changes at two starts at most, and the grid is as fine as this
    assert bool(((total / NUM_STARTS - 16 * p).abs() <= 2 / NUM_STARTS).all())
    torch.testing.assert_close(kept.numbers[:, -1], -(p * p.log()).sum(-1))
    torch.testing.assert_close(kept.losses, F.cross_entropy(logits, labels, reduction="none"))


def of_drawn(case: Case, kept: Kept) -> Any:
    teacher = DrawnPredictions(kept.ids, kept.numbers, 2.0, 2.5, SHARED)
    targets = VocabularyTargets(case.labels, 0.7, teacher, max_chunk_bytes=1)
    sums = vocabulary_losses(case.hidden, case.weight, case.bias, targets, case.rule)
    return list(sums), list(torch.autograd.grad(1.3 * sums[0], case.trained))


@pytest.mark.parametrize("rule", [None, LogitRule(0.4, 3.0)])
def test_what_is_drawn_teaches_the_whole_kl_on_average(rule):
    """Sums and gradients are linear in the counts: of the probabilities themselves they are those of the whole KL."""
    case = Case(23)
    case.rule = rule or case.rule
    logits = F.linear(rows_of(case, case.teacher_hidden), case.teacher_weight)[:, :SHARED] / 2
    p = logits.softmax(-1)
    every = Kept(torch.arange(SHARED).expand(len(p), -1), torch.cat([64 * p, _entropy(p)], -1), p[:, 0])
    assert_same(of_drawn(case, every), case.plain(shared=SHARED), TOLERANCE[torch.float64])
    hidden, labels = rows_of(case, case.teacher_hidden), rows_of(case, case.labels)
    keeping = Keeping(4, SHARED, 2.0, drawn=True)
    draws = (
        keep_drawn(hidden, case.teacher_weight, None, labels, keeping, starts=start) for start in grid(len(hidden))
    )
    found = [of_drawn(case, kept) for kept in draws]
    means = [[torch.stack(column).mean(0) for column in zip(*part, strict=True)] for part in zip(*found, strict=True)]
    assert_same(means, case.plain(shared=SHARED), 0.03)  # by the grid; 0.011 were seen
    one, whole = found[0][1][0], case.plain(shared=SHARED)[1][0]
    assert (one - whole).norm() > 0.05 * whole.norm()


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1.7, 2.0])
@pytest.mark.parametrize("scale", [1.0, 40.0, 3000.0])
def test_sure_students_are_held_against_the_same_numbers(scale, temperature, drawn, dtype):
    """Powers of e are taken once where that is enough, and with the largest taken off where nothing would be left."""
    generator = torch.Generator().manual_seed(2)
    theirs = (torch.randn(11, SHARED, generator=generator, dtype=torch.float64) * 3 / temperature).log_softmax(-1)
    if drawn:
        counts = torch.zeros(11, SHARED).scatter_add_(-1, torch.multinomial(theirs.exp(), 40, True), torch.ones(11, 40))
        most, ids = counts.double().topk(SHARED, dim=-1)
        numbers = torch.cat([most, -(theirs.exp() * theirs).sum(-1, keepdim=True)], -1)
        teacher: Any = DrawnPredictions(ids, numbers, temperature, 1.0, SHARED)
    else:
        ids = theirs.argsort(dim=-1, descending=True)[:, :5]
        others = theirs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        numbers = torch.cat([theirs.gather(-1, ids), others], -1)
        teacher = KeptPredictions(ids, numbers, temperature, 1.0, SHARED)
    leaf = torch.randn(11, VOCAB, generator=generator, dtype=torch.float64) * scale
    leaf[::2] /= scale  # some are not
    leaf = leaf.to(dtype).requires_grad_()
    identity, labels = torch.eye(VOCAB, dtype=dtype), torch.arange(11)
    sums = vocabulary_losses(leaf, identity, None, VocabularyTargets(labels, 0.3, teacher))
    (gradient,) = torch.autograd.grad(sums[0], leaf)
    plain = leaf.detach().double().requires_grad_()
    answer = Answer(ids, numbers, theirs, 0.0, 0)
    expected = plain_divergences(plain[:, :SHARED], answer, drawn=drawn, temperature=temperature).sum()
    of_task = F.cross_entropy(plain, labels, reduction="sum")
    (wanted,) = torch.autograd.grad(expected + 0.3 * of_task, plain)
    bound = TOLERANCE[dtype]
    assert sums[2].item() == pytest.approx(expected.item(), rel=10 * bound)
    assert sums[1].item() == pytest.approx(of_task.item(), rel=10 * bound)
    assert float((gradient.double() - wanted).norm()) <= bound * float(wanted.norm())


# --- while a cache is filled ------------------------------------------------------------------------------------------


class _Watch(TorchDispatchMode):
    """Counts what lives, and refuses what a GPU does in an order of chance alone."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.most = 0, 0
        self._seen = WeakIdKeyDictionary()
        self._held = Counter[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in ("aten::cumsum", "aten::cumsum_") and args[0].is_floating_point():
            pytest.fail(f"{name} of {args[0].dtype}: of torch's list for use_deterministic_algorithms")
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one not in self._seen:
                self._seen[one] = True
                storage = one.untyped_storage()
                self._hold(storage.data_ptr(), storage.nbytes())
                weakref.finalize(one, self._let_go, storage.data_ptr(), storage.nbytes())
        return result

    def _hold(self, place: int, size: int) -> None:
        self.live += size * (self._held[place] == 0)
        self._held[place] += 1
        self.most = max(self.most, self.live)

    def _let_go(self, place: int, size: int) -> None:
        self._held[place] -= 1
        self.live -= size * (self._held[place] == 0)


@pytest.mark.parametrize("drawn", [False, True])
def test_what_is_kept_takes_the_memory_that_is_planned_for(monkeypatch, drawn):
    """A chunk of products, and a few blocks of a fixed size beside it; and all of it in an order that is fixed."""
    block, rows, vocab = 16 * 512 * 4, 2048, 512
    monkeypatch.setattr(keeping, "BLOCK_BYTES", {"cpu": block, "cuda": block})
    hidden, weight = (torch.randn(count, 8).bfloat16() for count in (rows, vocab))
    asked = Keeping(4, vocab - 1, 2.0, drawn=drawn)
    more = {"starts": torch.rand(rows, dtype=torch.float64)} if drawn else {}
    with _Watch() as watch:
        kept = (keep_drawn if drawn else keep_top)(hidden, weight, None, torch.zeros(rows).long(), asked, **more)
        result = sum(one.nbytes for one in kept)
        if not drawn:
            lost(hidden, weight, None, kept, asked)
    chunk = rows * vocab * 2
    assert watch.most < chunk + filling.BLOCKS * block + 3 * result
    assert watch.most > chunk + result
