"""Where an answer starts and ends: losses among candidates against fp64 brute force, heads against transformers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample
from ted_ds.models.families import SPAN_TYPES, family_of
from ted_ds.models.heads import span_probes
from ted_ds.models.loading import auto_class
from ted_ds.models.predictions import DensePredictions, LossWeights
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.divergences import make_divergence
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import cross_entropy_sum
from ted_ds.numerics.task_terms import QUESTION_ANSWERING
from tests.plain import DIVERGENCES, plain_divergence
from tests.tiny import model_config

TEMPERATURE = 2.0
LENGTHS = (9, 5, 7)
CANDIDATES = ((range(1), range(4, 8)), (range(1), range(2, 4)), (range(2, 3), range(3, 6)))
LABELS = ([5, 7], [0, 0], None)


def batch_of(side: Any = "right", multiple_of: int = 1) -> Batch:
    """Windows of different lengths, the last without a label, and an empty row."""
    collate = Collator(pad_id=0, labels="spans", side=side, multiple_of=multiple_of)
    of_rows = zip(LENGTHS, LABELS, CANDIDATES, strict=True)
    return collate([*(Sample([7] * length, label, candidates=places) for length, label, places in of_rows), None])


def in_rows(batch: Batch, values: Tensor, *, elsewhere: float) -> Tensor:
    """Logits of tokens ``[row, 2, token]`` where the batch has these tokens, and anything ``elsewhere``."""
    logits = torch.full((len(batch.labels), 2, batch.input_ids.shape[1]), elsewhere)
    for row, length in enumerate(LENGTHS):
        start = int(batch.kept_tokens[row].int().argmax())
        logits[row, :, start : start + length] = values[row, :, :length]
    return logits.requires_grad_()


def normal(seed: int) -> Tensor:
    return 3 * torch.randn(3, 2, max(LENGTHS), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(
    ("side", "multiple_of", "elsewhere"), [("right", 1, 0.0), ("left", 8, 50.0), ("right", 8, math.nan)]
)
def test_both_terms_run_over_the_candidates_alone(kind: str, side: Any, multiple_of: int, elsewhere: float) -> None:
    batch, student, teacher = batch_of(side, multiple_of), normal(1), normal(2)
    if not math.isfinite(elsewhere):  # what a question's own tokens put out may be anything, too
        student[0, :, 2], teacher[0, :, 3] = math.nan, math.inf
    terms = replace(QUESTION_ANSWERING, divergence=make_divergence(kind, DIVERGENCES[kind]))
    logits = in_rows(batch, student, elsewhere=elsewhere)
    weights = LossWeights(task=0.7, prediction=1.3, temperature=TEMPERATURE)
    losses = DensePredictions(logits).losses(
        terms, batch, weights, DensePredictions(in_rows(batch, teacher, elsewhere=elsewhere))
    )
    assert losses.weighted_prediction is not None
    assert losses.prediction is not None
    (losses.weighted + losses.weighted_prediction).backward()

    plain = student.double().requires_grad_()
    task, divergence = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row, (label, places) in enumerate(zip(LABELS, CANDIDATES, strict=True)):
        chosen = [place for one in places for place in one]
        for head in range(2):
            mine, theirs = plain[row, head, chosen], teacher.double()[row, head, chosen]
            if label is not None:
                task = task - mine.log_softmax(-1)[chosen.index(label[head])]
            pair = (theirs[None] / TEMPERATURE, mine[None] / TEMPERATURE)
            divergence = divergence + plain_divergence(kind, DIVERGENCES[kind], *pair).sum()
    (0.7 * task + 1.3 * divergence).backward()
    assert losses.task.item() == pytest.approx(task.item(), rel=1e-6)
    assert losses.prediction.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert (int(terms.kept(batch.labels).sum()), int(terms.predicted(batch.labels, batch.kept_tokens).sum())) == (4, 6)
    assert logits.grad is not None
    assert plain.grad is not None
    for row, length in enumerate(LENGTHS):
        start = int(batch.kept_tokens[row].int().argmax())
        own = logits.grad[row, :, start : start + length].double()
        torch.testing.assert_close(own, plain.grad[row, :, :length], rtol=2e-5, atol=2e-7)
    assert batch.candidates is not None
    assert not logits.grad.transpose(1, 2)[~batch.candidates].any()
    assert logits.grad.transpose(1, 2)[batch.candidates].all()


def test_each_row_has_its_task_loss() -> None:
    batch = batch_of("left", 8)
    logits = in_rows(batch, normal(1), elsewhere=9.0).detach()
    predictions = DensePredictions(logits)
    rows = predictions.task_sums(QUESTION_ANSWERING, batch)
    assert rows[2:] == [0, 0]
    assert min(rows[:2]) > 0
    whole = predictions.losses(QUESTION_ANSWERING, batch, LossWeights()).task.item()
    assert sum(rows) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("model_type", SPAN_TYPES)
def test_starts_and_ends_are_those_of_transformers_and_so_is_the_loss(model_type: str) -> None:
    torch.manual_seed(3)
    model = auto_class("QuestionAnswering").from_config(model_config(model_type, blocks=2)).eval()
    ids = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[2, 4], [0, 0], [7, 7]])
    expected = model(input_ids=ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    tapped = TappedModel(model, family_of(model_type), [0, 1, 2], pooled=False)
    logits, states = tapped({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert logits is not None
    assert torch.equal(logits[:, 0], expected.start_logits)
    assert torch.equal(logits[:, 1], expected.end_logits)
    assert [state.shape for state in states] == [(3, 8, 16)] * 3
    everywhere = torch.ones(3, 8, dtype=torch.bool)
    batch = Batch(ids, torch.ones_like(ids), labels, everywhere, candidates=everywhere)
    found = DensePredictions(logits).losses(QUESTION_ANSWERING, batch, LossWeights()).task
    # transformers' mean over rows of the mean of both is that over all starts and ends
    assert found.item() / 6 == pytest.approx(expected.loss.item(), rel=1e-6)


def test_a_filter_is_read_by_a_linear_map_of_each_tokens_feature() -> None:
    torch.manual_seed(0)
    probes = span_probes(FilterBank([1], 16, 12), dim=12)
    state = torch.randn(3, 8, 16)
    predictions = probes.predict(0, state, {})
    assert isinstance(predictions, DensePredictions)
    head: Any = probes.heads[0]
    features = probes.bank.filters[0](state)
    assert torch.equal(predictions.logits[:, 1], (features @ head.weight.T + head.bias)[..., 1])
    labels = torch.tensor([[1, 2], [0, 0], [7, 7]])
    cross_entropy_sum(predictions.logits, labels).backward()
    assert head.weight.grad.any()
