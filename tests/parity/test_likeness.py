"""What is looked at beside the losses: relative error, CKA and the teacher's task loss, against fp64 brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.filters import FilterBank, Match, OfTexts, Pooling
from ted_ds.numerics.likeness import CHUNK_BYTES, SUMS, Gauge, Side, hsic_sums, likeness_of, sample_tokens
from ted_ds.numerics.logits import LogitRule
from ted_ds.numerics.teacher_predictions import TeacherPredictions
from ted_ds.numerics.vocabulary import VocabularyTargets, vocabulary_losses
from ted_ds.objectives.teacher_view import STUDENT_TASK, TEACHER_TASK
from tests.device import KERNELS
from tests.parity.test_task_terms import KINDS, TOLERANCE, Run, batch_of
from tests.task_kinds import TASK_TERMS

LENGTHS = (9, 4, 3, 70, 1)


def by_definition(one: Tensor, other: Tensor) -> float:
    """Unbiased HSIC as a mean over sets of four different tokens (Gretton et al. 2007; Song et al. 2012, section 3)."""
    k, m = one @ one.T, other @ other.T
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(one)), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        count += 1
    return total / count


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    states = torch.full((len(rows), longest, rows[0].shape[1]), torch.nan, dtype=rows[0].dtype)
    keep = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        states[index, place], keep[index, place] = row, True
    return states, keep


def rows_of(seed: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator, dtype=torch.float64) + 3 for length in LENGTHS]


def test_hsic_is_that_of_its_definition() -> None:
    own, theirs = ([row[:6] for row in rows_of(seed, width)[:4]] for seed, width in ((1, 5), (2, 7)))
    expected = [
        sum(by_definition(a, b) for a, b in zip(one, other, strict=True) if len(a) > 3)
        for one, other in ((own, theirs), (own, own), (theirs, theirs))
    ]
    (left, valid), (right, _) = padded(own, "right"), padded(theirs, "right")
    found = hsic_sums(left.nan_to_num(), right.nan_to_num(), valid)
    assert [float(one) for one in found] == pytest.approx(expected, rel=1e-9)


def test_a_sample_is_spread_evenly_over_a_text() -> None:
    _, keep = padded(rows_of(1, 2), "left")
    found = sample_tokens(keep, most=5)
    length = keep.shape[1]
    for row, tokens in zip(found.tolist(), LENGTHS, strict=True):
        own = [place - (length - tokens) for place in row if place < length]
        wanted = min(tokens, 5)
        assert own == [-(-part * tokens // wanted) for part in range(wanted)]
        assert row[wanted:] == [length] * (5 - wanted), "behind them there is none"


@pytest.mark.parametrize("chunk_bytes", [None, 1])
@pytest.mark.parametrize("kind", ["linear", "mlp", "identity"])
def test_sums_are_those_of_filtered_states_however_a_batch_is_cut_up(
    kind: str, chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk_bytes is not None:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", chunk_bytes)
    torch.manual_seed(3)
    banks = [FilterBank([1], width, 6, kind="mlp" if kind == "mlp" else "linear").double() for width in (5, 6)]
    student, teacher = banks[0].filters[0], banks[1].filters[0]
    layers = [student.layers(), [] if kind == "identity" else teacher.layers()]  # type: ignore[operator]
    sides = [rows_of(1, 5), rows_of(2, 6)]
    with torch.no_grad():
        features = [
            [filtered(row) if own else row for row in rows]
            for filtered, own, rows in zip((student, teacher), layers, sides, strict=True)
        ]
    pairs = list(zip(*features, strict=True))
    errors = [sum(float(x.square().sum()) for x in xs) for xs in ([a - b for a, b in pairs], features[1])]
    left, right = ([row[[-(-part * len(row) // 64) for part in range(64)]] if len(row) > 64 else row for row in rows]
                   for rows in features)  # fmt: skip
    hsic = [
        sum(float(hsic_sums(a[None], b[None], torch.ones(1, len(a), dtype=torch.bool))[0]) for a, b in texts)
        for texts in (zip(one, other, strict=True) for one, other in ((left, right), (left, left), (right, right)))
    ]
    for padding, parts in itertools.product(("right", "left"), ([5], [2, 3], [1] * 5)):
        found = torch.zeros(len(SUMS), dtype=torch.float64)
        first = 0
        for size in parts:
            (own, keep), (theirs, _) = (padded(rows[first : first + size], padding) for rows in sides)
            first += size
            gauge = Gauge(lambda sums, found=found: found.add_(sums), keep, kept_rows(keep))
            gauge.see(Side(own.nan_to_num(9.0), layers[0]), Side(theirs.nan_to_num(9.0), layers[1]))
        assert found.tolist() == pytest.approx([*errors, *hsic], rel=1e-10)


def test_a_term_is_the_same_with_and_without_a_look_at_it() -> None:
    torch.manual_seed(4)
    student, teacher = (FilterBank([1], 5, 6).filters[0] for _ in range(2))
    states, others = torch.randn(2, 2, 7, 5).unbind()
    keep = torch.rand(2, 7) > 0.3
    seen: list[Tensor] = []
    found = []
    for gauge in (None, Gauge(seen.append, keep, kept_rows(keep))):
        own = states.clone().requires_grad_()
        loss: Tensor = student(own, Match(others, teacher, kept_rows(keep), gauge=gauge))  # type: ignore[arg-type]
        loss.backward()
        found.append((loss.detach(), own.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert float(seen[0][0]) == pytest.approx(float(found[0][0]) * 6, rel=1e-5), "the sum of squares of the term"


@pytest.mark.parametrize("how", ["first", "mean"])
def test_texts_have_a_relative_error_and_nothing_within_them_to_compare(how: str) -> None:
    torch.manual_seed(5)
    student, teacher = (FilterBank([1], width, 6).filters[0] for width in (5, 7))
    own, theirs = torch.randn(3, 7, 5, requires_grad=True), torch.randn(3, 9, 7)  # tokens do not pair
    kept = torch.tensor([True, False, True])
    masks = [torch.ones(3, length, dtype=torch.long) for length in (7, 9)]
    texts = OfTexts(*(Pooling(how, mask) for mask in masks), kept)
    seen: list[Tensor] = []
    nothing = torch.zeros(0, dtype=torch.bool)
    match = Match(theirs, teacher, None, texts=texts, gauge=Gauge(seen.append, nothing, None))  # type: ignore[arg-type]
    student(own, match).backward()
    read = (lambda states: states[:, 0]) if how == "first" else (lambda states: states.mean(1))
    with torch.no_grad():
        mine, other = read(student(own))[kept].double(), read(teacher(theirs))[kept].double()
    expected = (mine - other).square().sum() / other.square().sum()
    assert likeness_of(seen[0].tolist()) == {"relative_error": pytest.approx(float(expected), rel=1e-5)}


def test_what_sums_say() -> None:
    assert likeness_of([2.0, 8.0, 3.0, 9.0, 4.0]) == {"relative_error": 0.25, "cka": 0.5}
    assert likeness_of([0.0, 0.0, 0.0, 0.0, 0.0]) == {}
    assert likeness_of([1.0, 2.0, 0.0, -1e-9, 1.0]) == {"relative_error": 0.5}
    assert likeness_of([float("inf"), 2.0, 1.0, 1.0, 1.0]) == {"cka": 1.0}


@pytest.mark.parametrize("kind", KINDS)  # the others are in tests/distributed/matrix.py
def test_the_teachers_task_loss_is_that_of_the_teacher_alone(kind: str) -> None:
    plain, looking = Run(kind), Run(kind, watched=True)
    assert torch.equal(plain.loss, looking.loss)
    told = looking.objective.told(looking.objective.seen(torch.device("cpu")).tolist())
    batch = batch_of(kind)
    expected = TASK_TERMS[kind].loss_sum(looking.teacher_logits.double(), batch.labels)
    count = looking.counts["loss/task"]
    assert told[TEACHER_TASK] == pytest.approx(float(expected / count), **APPROX)
    assert told[STUDENT_TASK] == pytest.approx(float(looking.totals["loss/task"] / count), **APPROX)
    assert torch.equal(plain.gradient, looking.gradient)
    again = looking.objective.told(looking.objective.seen(torch.device("cpu")).tolist())
    assert again == {}, "each step is told once"


APPROX: Any = {"rel": TOLERANCE["rtol"], "abs": TOLERANCE["atol"]}


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(divisor=2.0, bound=3.0)])
@pytest.mark.parametrize("max_chunk_bytes", [None, 1])
def test_over_a_vocabulary_it_is_over_all_of_the_teachers_ids_and_labelled_rows(
    rule: LogitRule, max_chunk_bytes: int | None
) -> None:
    generator = torch.Generator().manual_seed(6)
    rows, vocab, padded_vocab = 70, 11, 13
    hidden, theirs = torch.randn(2, rows, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, 5, generator=generator, dtype=torch.float64).requires_grad_()
    other = torch.randn(padded_vocab, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, (rows,), generator=generator)
    labels[::4] = -100
    for predicted in (None, torch.rand(rows, generator=generator) > 0.5):
        seen: list[Tensor] = []
        teacher = TeacherPredictions(theirs, other, None, 2.0, 0.7, vocab, rule=rule, on_task_loss=seen.append)
        targets = VocabularyTargets(labels, 0.3, teacher, max_chunk_bytes, predicted, kernels=KERNELS)
        vocabulary_losses(hidden, weight, None, targets)[0].backward()
        expected = F.cross_entropy(rule(theirs @ other.T), labels, ignore_index=-100, reduction="sum")
        assert [float(one) for one in seen] == [pytest.approx(float(expected), rel=1e-12)]
