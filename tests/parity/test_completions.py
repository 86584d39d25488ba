"""Each term of a chat over its own tokens: value and gradient against fp64 brute force, one conversation at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ted_ds.config.data import Padding
from ted_ds.config.tasks import Chat
from ted_ds.data.chat_data import packed_together
from ted_ds.data.loader import Batch
from ted_ds.data.samples import Sample
from ted_ds.models.families import family_of
from ted_ds.models.loading import auto_class
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.tasks.kind import kind_of
from tests.tiny import distill_plan, model_config, task_dict

LAYERS, HIDDEN, DIM, TEMPERATURE = (1, 2), 16, 12, 2.0
WEIGHTS = {"task_weight": 0.4, "kl_weight": 0.7, "feature_weight": 3.0, "temperature": TEMPERATURE}
TALKS = [
    ([5, 6, 7, 8, 1], [3, 5]),
    ([9, 10, 1, 11, 12, 13, 1], [0, 2, 5, 7]),  # begins with a completion, and its first token is none to predict
    ([14, 15, 16], [2, 3]),
    ([17, 18, 19, 20], []),  # nothing in it is one
]
"""Tokens, and where completions begin and end."""
# fp32 against fp64, of each gradient's norm; the worst seen was 1.2e-6
TOLERANCE = 1e-5
PLACES = [*itertools.product(("completion", "all"), repeat=3)]


def model(seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # large weights: predictions that are far from uniform, and teacher and student far apart
        return auto_class("CausalLM").from_config(model_config("llama", blocks=2, initializer_range=0.4)).eval()


def bank(seed: int) -> FilterBank:
    torch.manual_seed(seed)
    return FilterBank(LAYERS, HIDDEN, DIM)


def student() -> FilteredModel:
    return FilteredModel(TappedModel(model(1), family_of("llama"), LAYERS), bank(3))


def teacher() -> TappedModel:
    return TappedModel(model(2), family_of("llama"), LAYERS)


def chat(task_on: str, kl_on: str, feature_on: str, *, pack: bool = False) -> Any:
    changes = {"task_on": task_on, "kl_on": kl_on, "feature_on": feature_on, "pack": pack}
    return kind_of(Chat(**{**task_dict("chat"), **changes}))


@functools.cache
def brute_force(task_on: str, kl_on: str, feature_on: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The mean of each term, and the gradient of the weighted sum of these."""
    mine, theirs, their_bank = student().double(), teacher().double(), bank(4).double()
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def add(name: str, value: Any) -> None:
        sums[name], counts[name] = sums.get(name, 0.0) + value, counts.get(name, 0) + 1

    for ids, spans in TALKS:
        completed = {place for pair in zip(spans[::2], spans[1::2], strict=True) for place in range(*pair)}
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        (logits,), features = mine(inputs)
        with torch.no_grad():
            (their_logits,), states = theirs(inputs)
            their_features = their_bank(states)
        for place in range(len(ids)):
            precedes = place + 1 < len(ids)
            completes = precedes and place + 1 in completed
            if completes or (task_on == "all" and precedes):
                add("loss/task", -F.log_softmax(logits[place], -1)[ids[place + 1]])
            if completes or (kl_on == "all" and precedes):
                p, q = (F.log_softmax(one[place] / TEMPERATURE, -1) for one in (their_logits, logits))
                add("loss/kl_teacher_student", (p.exp() * (p - q)).sum())
            if completes or feature_on == "all":
                for layer, own, other in zip(LAYERS, features, their_features, strict=True):
                    add(f"loss/feature_mse/layer_{layer:02d}", (own[0, place] - other[0, place]).square().mean())
    means = {name: sums[name] / counts[name] for name in sums}
    features_of = [name for name in means if "feature" in name]
    loss = WEIGHTS["task_weight"] * means["loss/task"]
    loss = loss + WEIGHTS["kl_weight"] * TEMPERATURE**2 * means["loss/kl_teacher_student"]
    loss = loss + sum(WEIGHTS["feature_weight"] / len(features_of) * means[name] for name in features_of)
    loss.backward()
    return {name: float(mean.detach()) for name, mean in means.items()}, gradients_of(mine)


def gradients_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.grad.double() for name, one in module.named_parameters() if one.grad is not None}


def microbatches(kind: Any, layout: str) -> list[Batch]:
    samples = [Sample(ids, spans, document_lengths=[len(ids)]) for ids, spans in TALKS]
    collate = kind.collator(0, Padding(side="left" if layout == "left" else "right", multiple_of=4))
    if layout == "packed":
        packed = list(packed_together(samples, 12))
        assert len(packed) < len(samples)
        return [collate([*packed, None])]
    if layout == "apart":
        return [collate([one]) for one in samples]
    return [collate([samples[0], None, *samples[1:]])]


def run(module: Any, objective: Any, batches: Sequence[Batch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    of_batches = [objective.counts(batch) for batch in batches]
    counts = {name: torch.stack([one[name] for one in of_batches]).sum().float() for name in of_batches[0]}
    totals: dict[str, float] = {}
    for batch in batches:
        loss, sums = objective.loss(module, batch, counts)
        loss.backward()
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: value / float(counts[name]) for name, value in totals.items()}, gradients_of(module)


def assert_same(got: Any, expected: Any) -> None:
    assert got[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert got[1].keys() == expected[1].keys()
    whole = sum(one.square().sum() for one in expected[1].values()) ** 0.5
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).norm() <= TOLERANCE * (gradient.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("layout", ["right", "left", "packed", "apart"])
@pytest.mark.parametrize("places", PLACES, ids="-".join)
def test_each_term_is_a_mean_over_its_own_tokens(places: tuple[str, str, str], layout: str) -> None:
    kind = chat(*places, pack=layout == "packed")
    objective = DistillObjective(
        kind.terms,
        distill_plan(**WEIGHTS),
        teacher=FrozenModel(teacher(), device=torch.device("cpu"), engine_config=None),
        teacher_filters=bank(4).requires_grad_(False),
        student_layers=LAYERS,
    )
    assert_same(run(student(), objective, microbatches(kind, layout)), brute_force(*places))


@pytest.mark.parametrize("task_on", ["completion", "all"])
def test_without_a_teacher_the_task_term_has_its_tokens(task_on: str) -> None:
    kind = chat(task_on, "all", "all")
    values, _ = run(student(), FinetuneObjective(kind.terms), microbatches(kind, "right"))
    expected, _ = brute_force(task_on, "all", "all")
    assert values == pytest.approx({"loss/task": expected["loss/task"]}, rel=TOLERANCE)
