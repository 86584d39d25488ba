"""Attention, recomputation and compilation change how blocks run, and not what comes out of a step."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.execution import checkpoint_activations, compile_blocks
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.parts import blocks_of
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from tests.device import DEVICE
from tests.parity.test_task_terms import batch_of
from tests.task_kinds import TASK_TERMS
from tests.tiny import distill_plan, write_model

KIND = "causal_lm"


def load(folder, model_type, attention="auto"):
    model, _ = load_model(folder, LoadSettings(torch.float32, attention=attention), head=None)
    model.to(DEVICE)
    return model, family_of(model_type)


def loss_and_gradients(folder, model_type, *, attention="auto", recompute=False, compiled=False):
    """Of one step by all terms; how often each of the student's blocks ran its forward, and how often a tap fired."""
    model, family = load(folder / "teacher", model_type, attention)
    if compiled:
        compile_blocks(model, family)
    teacher = FrozenModel(TappedModel(model, family, [2, 4]), device=DEVICE, engine_config=None)
    model, family = load(folder / "student", model_type, attention)
    ran, tapped = [], []
    for block in blocks_of(model, family):
        next(block.children()).register_forward_hook(lambda *_: ran.append(1))
        block.register_forward_hook(lambda *_: tapped.append(1))
    if compiled:
        compile_blocks(model, family)
    if recompute:
        checkpoint_activations(model, family)
    torch.manual_seed(0)
    module = FilteredModel(TappedModel(model, family, [1, 2]), FilterBank([1, 2], 16, 24)).to(DEVICE).train()
    objective = DistillObjective(
        TASK_TERMS[KIND],
        distill_plan(task_weight=1.0, kl_weight=0.5, temperature=2.0, feature_weight=2.0),
        teacher=teacher,
        teacher_filters=FilterBank([2, 4], 16, 24).to(DEVICE).requires_grad_(False),
        student_layers=(1, 2),
    )
    batch = batch_of(KIND).to(DEVICE)
    loss, _ = objective.loss(module, batch, objective.counts(batch))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in module.named_parameters()}, len(ran), len(tapped)


@pytest.fixture(params=["llama", "gpt2"])
def models(tmp_path, request):
    write_model(tmp_path / "teacher", request.param, blocks=4, seed=1)
    write_model(tmp_path / "student", request.param, blocks=2, seed=2)
    return tmp_path, request.param


def assert_same(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient is not None, name
        assert (got[1][name] - gradient).norm() <= 2e-5 * max(gradient.norm().item(), 1e-3), name


def test_recomputed_activations_give_the_same_step_and_the_losses_once(models):
    plain = loss_and_gradients(*models)
    recomputed = loss_and_gradients(*models, recompute=True)
    assert_same(recomputed, plain)
    assert (plain[2], recomputed[2]) == (2, 4)  # each block's inside ran twice, and what follows it once
    assert plain[3] == recomputed[3] == 2


def test_attentions_give_the_same_step(models):
    assert_same(loss_and_gradients(*models, attention="eager"), loss_and_gradients(*models, attention="sdpa"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile hides those it makes itself, but not from errors
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_step(models, recompute):
    plain = loss_and_gradients(*models)
    torch._dynamo.reset()
    counters.clear()
    assert_same(loss_and_gradients(*models, compiled=True, recompute=recompute), plain)
    assert counters["frames"]["ok"] >= 2


def test_an_attention_that_is_not_there_is_said(tmp_path):
    write_model(tmp_path, "llama", blocks=1)
    with pytest.raises((ConfigError, CheckpointError), match=r"attention: flash does not work here: .*; use sdpa"):
        load(tmp_path, "llama", "flash")
