"""The auxiliary loss of routers: of each row against transformers', and the same however a batch is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ted_ds.data.loader import Batch, Collator
from ted_ds.data.samples import Sample
from ted_ds.models.execution import checkpoint_activations
from ted_ds.models.families import FAMILY_OF, family_of
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.balance import balance_sum
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.task_terms import CAUSAL_LM
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import BALANCE, FinetuneObjective
from ted_ds.runtime.frozen import FrozenModel
from tests.tiny import VOCAB_SIZE, distill_plan, write_model

TYPES = tuple(name for name, family in FAMILY_OF.items() if family.num_experts_keys)
WEIGHT = 0.3
LENGTHS = (9, 1, 5, 12)
CAUSAL_LM_WITH_ROUTERS = replace(CAUSAL_LM, balance_weight=WEIGHT)


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]


def batch_of(texts: list[list[int]], **settings: Any) -> Batch:
    return Collator(0, "tokens", **settings)([*(Sample(ids, document_lengths=[len(ids)]) for ids in texts), None])


@pytest.fixture(params=TYPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_model(tmp_path, request.param, output_router_logits=True, router_aux_loss_coef=WEIGHT)


def load(folder: Path) -> tuple[Any, TappedModel]:
    model, _ = load_model(folder, LoadSettings(torch.float32), head=None)
    return model, TappedModel(model, family_of(model.config.model_type))


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-4, atol=1e-5 * max(float(one.abs().max()), 1e-2))


def plain(folder: Path) -> tuple[float, float, dict[str, Tensor]]:
    """Transformers' own, of one row at a time: task loss, the auxiliary loss per token, the gradient of both."""
    model, _ = load_model(folder, LoadSettings(torch.float32), head=None)
    num_labels, num_tokens = sum(length - 1 for length in LENGTHS), sum(LENGTHS)
    task, balance = torch.zeros(()), torch.zeros(())
    for ids in rows():
        outputs = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        balance = balance + len(ids) * outputs.aux_loss
        if len(ids) > 1:
            task = task + nn.functional.cross_entropy(outputs.logits[0, :-1], torch.tensor(ids[1:]), reduction="sum")
    task, balance = task / num_labels, balance / num_tokens
    (task + WEIGHT * balance).backward()
    return task.item(), balance.item(), gradients_of(model)


@pytest.mark.parametrize(
    ("cuts", "side", "recompute"),
    [([4], "right", False), ([1, 3], "left", True), ([1, 1, 1, 1], "right", True), ([2, 2], "left", False)],
)
def test_a_step_adds_the_loss_of_each_row_however_the_batch_is_cut(
    folder: Path, cuts: list[int], side: Any, recompute: bool
) -> None:
    task, balance, expected = plain(folder)
    model, tapped = load(folder)
    if recompute:
        checkpoint_activations(model.train(), family_of(model.config.model_type))
    assert read_model_facts(folder).balance_weight == WEIGHT
    objective = FinetuneObjective(CAUSAL_LM_WITH_ROUTERS)
    texts = iter(rows())
    batches = [batch_of([next(texts) for _ in range(size)], side=side) for size in cuts]
    counts = [objective.counts(batch) for batch in batches]
    whole = {name: torch.stack([one[name] for one in counts]).sum() for name in objective.weights}
    totals = dict.fromkeys(objective.weights, 0.0)
    for batch in batches:
        loss, sums = objective.loss(tapped, batch, whole)
        loss.backward()
        totals = {name: totals[name] + sums[name].item() for name in totals}
    assert totals["loss/task"] / whole["loss/task"] == pytest.approx(task, rel=1e-5)
    assert totals[BALANCE] / whole[BALANCE] == pytest.approx(balance, rel=1e-5)
    assert_same(gradients_of(model), expected)


def test_stage_two_adds_the_same_loss_to_its_own(folder: Path) -> None:
    batch, found = batch_of(rows()), []
    for task in (CAUSAL_LM, CAUSAL_LM_WITH_ROUTERS):
        _, tapped = load(folder)
        _, frozen = load(folder)
        module = FilteredModel(tapped, FilterBank([], 16, 16))
        teacher = FrozenModel(frozen, device=torch.device("cpu"), engine_config=None)
        plan = distill_plan(method="kd", task_weight=0.5, kl_weight=1.0)
        objective = DistillObjective(task, plan, teacher=teacher, teacher_filters=None, student_layers=())
        loss, sums = objective.loss(module, batch, objective.counts(batch))
        loss.backward()
        found.append((loss.item(), sums, gradients_of(tapped)))
    (without, no_sums, own), (with_it, sums, both) = found
    assert BALANCE not in no_sums
    assert with_it - without == pytest.approx(WEIGHT * sums[BALANCE].item() / sum(LENGTHS), rel=1e-4)
    routers = [name for name in own if name.endswith("gate.weight")]
    assert routers
    assert any(not torch.allclose(own[name], both[name]) for name in routers)


def test_where_the_config_does_not_ask_for_it_there_is_none(tmp_path: Path) -> None:
    for switch in ({}, {"output_router_logits": False}):
        write_model(tmp_path, "mixtral", **switch)
        assert read_model_facts(tmp_path).balance_weight == 0
    write_model(tmp_path, "llama", output_router_logits=True)
    assert read_model_facts(tmp_path).balance_weight == 0


def test_of_a_batch_of_one_row_it_is_what_transformers_computes_of_padding_left_out() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = [torch.randn(12, 4, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    kept = torch.ones(1, 12, dtype=torch.bool)
    kept[0, 7:] = False
    expected = load_balancing_loss_func(tuple(logits), 4, 2, kept.long())
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(balance_sum(logits, kept, 2) / 7, expected, rtol=1e-6, atol=0)
    empty = torch.zeros(1, 12, dtype=torch.bool)
    assert balance_sum(logits, empty, 2) == 0
