"""``distill.balance``: weights from the gradients of terms, against plain PyTorch in fp64 that sees the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ted_ds.models.shared_block import last_shared_block
from ted_ds.runtime.determinism import random_state
from ted_ds.runtime.gradient_norms import GradientNorms
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.test_zero_parity import TOLERANCE, combined, plain_terms, whole_batch, write_models
from tests.distributed.training import (
    GLOBAL_BATCH,
    NUM_STEPS,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    assembled,
    batches,
    config,
    load_tapped,
    plan,
    samples,
    start_engine,
    student_bank,
    teacher_bank,
)

SHARES = {"task_weight": 0.7, "kl_weight": [[0, 1.3], [2, 0.3]], "feature_weight": 3.0}
NAMES = tuple(SHARES)
BY_STEP = [{"task_weight": 0.7, "kl_weight": kl, "feature_weight": 3.0} for kl in (1.3, 0.8, 0.3)]
EVERY, AVERAGE = 2, 0.6
SETTINGS = {**SHARES, "balance": "gradient_norm", "balance_every_steps": EVERY, "balance_average": AVERAGE}
KINDS = ("causal_lm", "sequence_classification")
NORMS = 1e-4
"""Relative error of a norm: 3e-5 was seen, of the KL of two models that nearly agree, after steps in fp32."""
BLOCK = {"causal_lm": "model.model.layers.0.", "sequence_classification": "model.bert.encoder.layer.0."}
"""The block of the first of ``STUDENT_LAYERS``."""


def run_levels(world, folders, levels) -> dict[Any, Any]:
    """Of each kind of task and ZeRO stage, whole weights after all steps, and what was reported of each."""
    return {
        (kind, stage): run_steps(world, folder, kind, stage, SETTINGS)
        for kind, folder in folders.items()
        for stage in levels
    }


def run_measured(world, folder) -> tuple[Any, Any]:
    """The same of given weights, whose gradients are measured, or are not."""
    measured = {**SETTINGS, "balance": "measure"}
    return tuple(run_steps(world, folder, KINDS[0], 2, settings) for settings in (measured, SHARES))


def run_steps(world, folder, kind, stage, settings) -> Any:
    ds_config = config(stage, world.size, 0.0)
    module, objective, teacher = assembled(
        world, folder, "distill", kind, ds_config, sharded=stage == 3, precision="fp32", **settings
    )
    if "balance" in settings:
        objective.balance_on([*last_shared_block(module.tapped).parameters()])
    engine, steps, reports = start_engine(world, module, ds_config), batches(world, kind), []
    for step in range(NUM_STEPS):
        objective.begin_step(step)
        engine.step(steps, objective)
        reports.append(engine.report(objective))
    weights = full_state_dict(module, keep=world.is_main)
    if "balance" in settings:
        assert_nothing_is_drawn(engine, objective, steps_of=lambda: batches(world, kind))
    engine.release()
    assert teacher is not None
    teacher.release()
    return weights, reports


def assert_nothing_is_drawn(engine, objective, *, steps_of) -> None:
    """With dropout, each measurement sees what the step itself will, and leaves the generators where they were."""
    module, seen = engine.engine.module, []
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    measured, before = objective.balance, random_state()
    for _ in range(2):
        objective.begin_step(None)
        micro, _ = engine._next_microbatches(steps_of(), objective)
        counts = {name: count.float() for name, count in engine._step.counts.items()}
        seen.append(
            GradientNorms(engine.engine, module, engine._world).measure(measured, objective.loss, micro, counts)
        )
    assert seen[0] == seen[1]
    assert random_state() == before


def balanced_plainly(folder, kind) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The same steps, from the formulas: SGD on terms whose weights follow from their gradients on one block."""
    modules: dict[str, Any] = {
        "teacher": load_tapped(folder / "teacher", kind, TEACHER_LAYERS).double().eval(),
        "student": load_tapped(folder / "student", kind, STUDENT_LAYERS).double().train(),
        "student_bank": student_bank().double(),
        "teacher_bank": teacher_bank().double(),
    }
    trained = {f"tapped.{name}": p for name, p in modules["student"].named_parameters()}
    trained |= {f"bank.{name}": p for name, p in modules["student_bank"].named_parameters()}
    of_block = [p for name, p in modules["student"].named_parameters() if name.startswith(BLOCK[kind])]
    everything, averages, reports = samples(kind), {}, []
    for step in range(NUM_STEPS):
        batch = whole_batch(everything[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH], kind)
        terms = plain_terms(kind, modules, *batch)
        if step % EVERY == 0:
            for name in NAMES:
                alone = combined(terms, {one: float(one == name) for one in NAMES})
                gradients = torch.autograd.grad(alone, of_block, retain_graph=True)
                norm = torch.cat([one.flatten() for one in gradients]).norm().item()
                averages[name] = AVERAGE * averages[name] + (1 - AVERAGE) * norm if step else norm
        weights = {name: BY_STEP[step][name] * averages["task_weight"] / averages[name] for name in NAMES}
        gradients = torch.autograd.grad(combined(terms, weights), [*trained.values()])
        with torch.no_grad():
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter -= plan(0.0).learning_rate * gradient
        norms = {f"train/gradient_norm/{name.removesuffix('_weight')}": norm for name, norm in averages.items()}
        reports.append({**{f"train/{name}": weight for name, weight in weights.items()}, **norms})
    return {name: parameter.detach() for name, parameter in trained.items()}, reports


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Folders with models, and what plain PyTorch makes of them."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        write_models(folder, kind)
    return folders, {kind: balanced_plainly(folder, kind) for kind, folder in folders.items()}


@pytest.mark.parametrize(
    ("world_size", "levels"),
    [(2, (0, 3)), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, (1, 2)), (1, (0, 3))))],
)
def test_terms_are_weighed_by_their_gradients_on_the_whole_batch(expected, world_size, levels):
    folders, plainly = expected
    of_ranks = run_ranks(run_levels, world_size, folders, levels)
    for kind, (weights, reports) in plainly.items():
        for stage in levels:
            for of_rank in of_ranks:
                for got, wanted in zip(of_rank[kind, stage][1], reports, strict=True):
                    for name, value in wanted.items():
                        assert got[name] == pytest.approx(value, rel=NORMS), (kind, stage, name)
                assert of_rank[kind, stage][1] == of_ranks[0][kind, stage][1]
            for name, weight in weights.items():
                got = of_ranks[0][kind, stage][0][name].double()
                torch.testing.assert_close(got, weight, **TOLERANCE, msg=lambda text, at=(stage, name): f"{at}: {text}")


def test_what_is_only_measured_changes_no_bit(expected):
    folders, plainly = expected
    (weights, reports), (plain_weights, plain_reports) = run_ranks(run_measured, 2, folders[KINDS[0]])[0]
    assert weights.keys() == plain_weights.keys()
    for name, weight in plain_weights.items():
        assert torch.equal(weights[name], weight), name
    of_start = {name: value for name, value in plainly[KINDS[0]][1][0].items() if "gradient_norm/" in name}
    assert {name: reports[0][name] for name in of_start} == pytest.approx(of_start, rel=NORMS)
    for measured, plain in zip(reports, plain_reports, strict=True):
        norms = {name for name in measured if "gradient_norm/" in name}
        assert norms == {*of_start}
        assert {name: value for name, value in measured.items() if name not in norms} == plain
