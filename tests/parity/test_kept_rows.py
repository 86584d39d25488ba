"""The loader says which rows are kept: losses find it there, and do not ask the device for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ted_ds.config.data import Padding
from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.models.heads import lm_probes
from ted_ds.models.loading import DTYPES
from ted_ds.models.student import FilteredModel
from ted_ds.numerics.chunks import kept_rows
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.losses import kept_labels
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.learn_filters import FilterObjective
from ted_ds.runtime.frozen import FrozenModel
from tests.distributed.training import load_tapped
from tests.task_kinds import OF_NAME, TASK_TERMS
from tests.tiny import distill_plan, write_model

CPU = torch.device("cpu")
HIDDEN, DIM = 16, 8


class Searches(TorchDispatchMode):
    """Counts what a device would have to be waited for: searches for what is not zero."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(("aten.nonzero", "aten.masked_select")):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def batch():
    """Padded, with a row without any token."""
    collate = Collator(0, "tokens", isolate_documents=True)
    return collate([Sample([5, 6, 7, 1, 8, 1], document_lengths=[4, 2]), Sample([9, 1], document_lengths=[2]), None])


def test_a_batch_that_is_moved_takes_along_which_rows_are_kept():
    before = batch()
    moved = before.to(CPU)
    with Searches() as searches:
        assert moved.token_rows is not None
    assert searches.names == []
    assert torch.equal(moved.token_rows, kept_rows(before.kept_tokens))
    assert torch.equal(moved.label_rows, kept_rows(kept_labels(before.labels)))
    whole = Collator(0, "tokens")([Sample([5, 6, 7]), Sample([8, 9, 1])]).to(CPU)
    assert whole.token_rows is None
    assert dataclasses.replace(moved, samples=()).token_rows is not None  # found anew


@pytest.fixture
def models(tmp_path):
    write_model(tmp_path, "llama", blocks=2)
    return lambda layers: load_tapped(tmp_path, layers=layers, kind="causal_lm", precision="fp32")


def chats():
    """The same, with completions: each term of Stage II runs over other tokens."""
    collate = OF_NAME["chat"].collator(0, Padding())
    return collate([Sample([5, 6, 7, 1, 8, 1], [2, 4], [6]), Sample([9, 1], [1, 2], [2]), None])


@pytest.mark.parametrize(("kind", "batch"), [("causal_lm", batch), ("chat", chats)])
def test_stage_two_searches_nothing(models, kind, batch):
    student = FilteredModel(models((1, 2)), FilterBank((1, 2), HIDDEN, DIM))
    objective = DistillObjective(
        TASK_TERMS[kind],
        distill_plan(),
        teacher=FrozenModel(models((1, 2)), device=CPU, engine_config=None),
        teacher_filters=FilterBank((1, 2), HIDDEN, DIM).requires_grad_(False),
        student_layers=(1, 2),
    )
    moved = batch().to(CPU)
    counts = objective.counts(moved)
    with Searches() as searches:
        loss, _ = objective.loss(student, moved, counts)
        loss.backward()
    assert searches.names == []


def test_stage_one_searches_nothing(models, tmp_path):
    body = FrozenModel(models((1, 2)), device=CPU, engine_config=None)
    probes = lm_probes(
        FilterBank((1, 2), HIDDEN, DIM), dim=DIM, model_path=tmp_path, kind="frozen", dtype=DTYPES["fp32"]
    )
    objective = FilterObjective(TASK_TERMS["causal_lm"], body, (1, 2))
    moved = batch().to(CPU)
    counts = objective.counts(moved)
    with Searches() as searches:
        loss, _ = objective.loss(probes, moved, counts)
        loss.backward()
    assert searches.names == []
