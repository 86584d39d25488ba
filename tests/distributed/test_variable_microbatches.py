"""Steps of as many microbatches as their texts need: gradients and updates of one fp64 process, under every ZeRO stage.

The steps have 1, 3, 2 and 1 microbatches per rank, and a bad one of 2 stands between: what DeepSpeed remembers of one
step's microbatches must not reach into the next.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch

from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.grouping import by_token_budget
from ted_ds.data.loader import Collator
from ted_ds.data.samples import Sample
from ted_ds.models.loading import DTYPES
from ted_ds.models.student import FilteredModel
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.matrix import TOLERANCE
from tests.distributed.test_zero_parity import plain_loss, write_models
from tests.distributed.training import (
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    WEIGHTS,
    load_tapped,
    raw_config,
    start_engine,
    student_bank,
    teacher_bank,
)
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, VOCAB_SIZE, distill_plan

KIND = "sequence_classification"
BUDGET = {1: 48, 2: 24}
"""Padded tokens per microbatch, by ranks: so that a rank has the same number of them."""
LENGTHS = (
    (3, 2, 4, 3, 2, 3, 4, 3),
    (13, 9, 12, 8, 11, 13, 7, 12),
    (6, 5, 9, 3, 8, 7, 6, 4),  # the bad one
    (9, 9, 8, 10, 7, 6, 9, 5),
    (5,),  # on two ranks, one has an empty row alone
)
MICROBATCHES = [1, 3, 2, 2, 1]
BAD_STEP = 2
STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
LEARNING_RATE = {"fp32": 0.2, "bf16": 1e-30}
"""In bf16 the weights stay as they are, so that gradients of all steps are of the same rounded weights."""


def samples_of(step: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(step)
    return [
        Sample(torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist(), index % len(LABELS))
        for index, length in enumerate(LENGTHS[step])
    ]


def microbatches_of(step: int, rank: int, world_size: int):
    rows = samples_of(step)
    of_ranks = by_token_budget(LENGTHS[step], budget=BUDGET[world_size], multiple_of=1, world_size=world_size)
    collate = Collator(pad_id=0, labels="class")
    return [collate([None if i is None else rows[i] for i in one]) for one in of_ranks[rank]]


def engine_config(stage: int, world_size: int, precision: str, offload: bool) -> dict[str, Any]:
    plan = PhasePlan(
        max_steps=8,
        learning_rate=LEARNING_RATE[precision],
        global_batch_size=8,
        micro_batch_tokens=BUDGET[world_size],
        schedule="constant",
        gradient_clipping=0.0,
    )
    raw, source = raw_config(stage)
    if offload:
        raw["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        raw["zero_force_ds_cpu_optimizer"] = False
    return complete(raw, plan, plan_path="distill", precision=precision, world_size=world_size, source=source)


def run_steps(world, folder, stage, precision, offload):
    """For each step: how many microbatches, whether it was skipped, the gradients and the report; and the weights."""
    ds_config = engine_config(stage, world.size, precision, offload)
    load = functools.partial(load_tapped, kind=KIND, precision=precision)
    teacher = FrozenModel(load(folder / "teacher", layers=TEACHER_LAYERS), device=world.device, engine_config=None)
    student = load(folder / "student", layers=STUDENT_LAYERS, shard=ds_config if stage == 3 else None)
    module = FilteredModel(student, student_bank())
    objective = DistillObjective(
        TASK_TERMS[KIND],
        distill_plan(**WEIGHTS),
        teacher=teacher,
        teacher_filters=teacher_bank().to(DTYPES[precision]),
        student_layers=STUDENT_LAYERS,
    )
    plain_loss, bad = objective.loss, torch.zeros(())

    def loss(*arguments):
        share, terms = plain_loss(*arguments)
        return share + bad, {**terms, "loss/task": terms["loss/task"] + bad}

    objective.loss = loss  # type: ignore[method-assign]
    engine = start_engine(world, module, ds_config, precision=precision)
    steps = []
    for step in range(len(LENGTHS)):
        bad.fill_(torch.inf if step == BAD_STEP and world.rank == 0 else 0.0)
        micro = microbatches_of(step, world.rank, world.size)
        engine.accumulate(iter([micro]), objective)
        gradients = {name: gradient for name, gradient in engine.gradients() if gradient is not None}
        skipped = engine.update()
        steps.append((len(micro), skipped is not None, gradients, engine.report(objective)))
    return steps, full_state_dict(module, keep=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The models, and by precision the gradients and terms of each step and the final weights, in fp64."""
    folder = tmp_path_factory.mktemp("variable")
    write_models(folder, KIND)

    @functools.cache
    def make(precision):
        dtype = DTYPES[precision]
        load = functools.partial(load_tapped, kind=KIND, precision=precision)
        modules: dict[str, Any] = {
            "teacher": load(folder / "teacher", layers=TEACHER_LAYERS).double().eval(),
            "student": load(folder / "student", layers=STUDENT_LAYERS).double().train(),
            "student_bank": student_bank().to(dtype).double(),
            "teacher_bank": teacher_bank().to(dtype).double(),
        }
        # by the names that a FilteredModel gives them
        trained = dict(FilteredModel(modules["student"], modules["student_bank"]).named_parameters())
        steps = []
        for step in range(len(LENGTHS)):
            loss, terms = plain_loss("distill", KIND, modules, samples_of(step))
            gradients = torch.autograd.grad(loss, list(trained.values()))
            named = dict(zip(trained, gradients, strict=True))
            steps.append((named, {**terms, "loss/total": loss.item()}))
            if step != BAD_STEP:
                with torch.no_grad():
                    for name, parameter in trained.items():
                        parameter -= LEARNING_RATE[precision] * named[name]
        return folder, steps, {name: copy.deepcopy(parameter.detach()) for name, parameter in trained.items()}

    return make


@pytest.mark.parametrize(
    ("stage", "precision", "offload", "world_size"),
    [(*one, False, world_size) for one in STAGES for world_size in (1, 2)]
    + [pytest.param(2, "fp32", True, 2, marks=pytest.mark.slow), (3, "fp32", True, 2)],
)
def test_each_steps_gradient_is_that_of_its_texts(reference, stage, precision, offload, world_size):
    folder, expected, weights = reference(precision)
    tolerance = TOLERANCE[precision]
    for steps, trained in run_ranks(run_steps, world_size, folder, stage, precision, offload):
        assert [count for count, *_ in steps] == MICROBATCHES
        assert [skipped for _, skipped, *_ in steps] == [step == BAD_STEP for step in range(len(LENGTHS))]
        for step, ((_, skipped, gradients, report), (wanted, terms)) in enumerate(zip(steps, expected, strict=True)):
            if skipped:
                continue
            assert gradients.keys() == wanted.keys()
            whole = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
            for name, gradient in wanted.items():
                error = (gradients[name].double() - gradient).norm() / (gradient.norm() + 1e-3 * whole)
                assert error < tolerance["gradient"], f"step {step}, {name}: {error:.1e}"
            for name, value in terms.items():
                assert report[name] == pytest.approx(value, rel=tolerance["loss"], abs=1e-2 * tolerance["loss"]), name
            assert report["train/tokens"] == sum(LENGTHS[step])
            batches = [microbatches_of(step, rank, world_size) for rank in range(world_size)]
            positions = sum(batch.input_ids.numel() for batch in itertools.chain(*batches))
            assert report["train/padding"] == pytest.approx(1 - sum(LENGTHS[step]) / positions)
        if precision == "fp32":
            for name, value in weights.items():
                torch.testing.assert_close(trained[name].double(), value, rtol=1e-4, atol=5e-6, msg=name)
