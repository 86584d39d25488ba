"""A microbatch leaves the host free to ask for the next one: where it waits for a device, and how often."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from ted_ds.data.loader import Batch, Collator, OfCompletions
from ted_ds.data.samples import Sample
from ted_ds.models.document_attention import OF_THE_KERNEL
from ted_ds.models.families import family_of
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.models.student import FilteredModel
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.step_sums import StepSums
from tests.device import DEVICE, IS_CPU
from tests.parity.test_packing import packed_samples, random_ids
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, distill_plan, write_model
from tests.waits import waits_of

PER_MODEL = 1
"""How often transformers looks, in a forward pass, whether rows are padded, or hold several documents."""
DTYPE = torch.float32 if IS_CPU else torch.bfloat16


def batch_of(kind: str, isolated: bool, side: Any = "right") -> Batch:
    if kind == "sequence_classification":
        return Collator(0, "class", side=side)([Sample(ids, 1) for ids in random_ids(9, 1, 5, 2)])
    if kind == "completions":
        samples = [Sample(ids, [2, 4]) for ids in random_ids(9, 8, 5, 6)]
        return Collator(0, "tokens", side=side, of_completions=OfCompletions(True, False, True))(samples)
    return Collator(0, "tokens", side=side, isolate_documents=isolated)([*packed_samples(), None])


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a microbatch's forward and backward pass of all terms, ready to be taken."""
    folder = tmp_path_factory.mktemp("models")
    for kind, labels in (("causal_lm", None), ("sequence_classification", LABELS)):
        for side, blocks in (("teacher", 4), ("student", 2)):
            write_model(folder / kind / side, "llama" if labels is None else "bert", blocks=blocks, labels=labels)

    def make(kind: str, attention: str, isolated: bool, watched: bool = False, **plan: Any) -> Any:
        models = kind if kind != "completions" else "causal_lm"
        head = None if models == "causal_lm" else {"num_labels": len(LABELS)}
        family = family_of("llama" if head is None else "bert")
        load = functools.partial(load_model, settings=LoadSettings(DTYPE, attention=attention), head=head)
        teacher, student = (
            TappedModel(load(folder / models / side)[0], family, layers)
            for side, layers in (("teacher", [2, 4]), ("student", [1, 2]))
        )
        module = FilteredModel(student, FilterBank([1, 2], 16, 24)).to(DEVICE, DTYPE).train()
        objective = DistillObjective(
            TASK_TERMS[models],
            distill_plan(task_weight=1.0, kl_weight=0.5, feature_weight=2.0, **plan),
            teacher=FrozenModel(teacher, device=DEVICE, engine_config=None),
            teacher_filters=FilterBank([2, 4], 16, 24).to(DEVICE, DTYPE).requires_grad_(False),
            student_layers=(1, 2),
        )
        objective.watch(watched)
        batch = batch_of(kind, isolated)
        counts = StepSums(counts=dict(objective.counts(batch))).counts_on(DEVICE)

        def step() -> None:
            loss, _ = objective.loss(module, here, counts)
            loss.backward()

        here = batch.to(DEVICE)
        step()  # what is made once is made by now
        return step

    return make


PLANS = {"kl": {}, "jsd": {"divergence": "jsd", "divergence_beta": 0.5}, "cka": {"feature_distance": "cka"}}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["causal_lm", "completions", "sequence_classification"])
def test_no_term_waits_and_each_model_waits_once(steps: Any, kind: str, plan: str) -> None:
    waits = waits_of(steps(kind, "sdpa", isolated=True, **PLANS[plan]))
    assert all("masking_utils" in one for one in waits), waits
    assert len(waits) <= 2 * PER_MODEL, waits


@pytest.mark.parametrize("watched", [False, True])
def test_documents_by_their_borders_wait_for_nothing(steps: Any, watched: bool) -> None:
    # on a CPU there is nobody to wait for, and documents are looked at where they are
    assert IS_CPU or DTYPE in OF_THE_KERNEL
    waits = waits_of(steps("causal_lm", "packed", isolated=True, watched=watched))
    assert [one for one in waits if "document_attention" not in one or not IS_CPU] == []


def test_a_look_at_how_near_the_teacher_is_waits_no_more(steps: Any) -> None:
    assert len(waits_of(steps("causal_lm", "sdpa", isolated=False, watched=True))) <= 2 * PER_MODEL


def test_a_batch_and_its_counts_go_to_the_device_without_a_wait() -> None:
    batch = batch_of("causal_lm", isolated=True)
    counts = {"one": torch.tensor(3.0), "other": torch.tensor(5.0, dtype=torch.float64)}
    _ = batch.to(DEVICE), StepSums(counts=counts).counts_on(DEVICE)  # pinned memory is there by now
    moved: list[Batch] = []
    if not IS_CPU:  # what is found on the way is found on the host
        assert waits_of(lambda: moved.append(batch.to(DEVICE))) == []
    assert waits_of(lambda: StepSums(counts=counts).counts_on(DEVICE)) == []
    moved.append(batch.to(DEVICE))
    assert waits_of(lambda: (moved[0].token_rows, moved[0].label_rows, moved[0].inputs)) == []


def test_what_waits_is_noticed() -> None:
    values = torch.arange(6, device=DEVICE)
    for work in (
        lambda: values.sum().item(),
        lambda: values[values > 2],
        lambda: values.nonzero(),
        lambda: bool(values.any()),
        lambda: values.tolist(),
    ):
        assert len(waits_of(work)) >= 1
    assert waits_of(lambda: values.sum() + values[:2].sum()) == []
