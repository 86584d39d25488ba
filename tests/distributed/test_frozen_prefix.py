"""Students whose first blocks are their teacher's and stay so: ZeRO 0-3 against both models run apart in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.assembly.shared_prefix import num_equal
from ted_ds.models.companions import Origins
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.models.frozen_prefix import PrefixStates, freeze_prefix
from ted_ds.models.student import FilteredModel
from ted_ds.numerics.filters import FilterBank
from ted_ds.objectives.distill import DistillObjective
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.runtime.sharding import full_state_dict
from tests.dist import run_ranks
from tests.distributed.matrix import NOTHING
from tests.distributed.test_zero_parity import MODEL_TYPE, TOLERANCE, plain_loss
from tests.distributed.training import (
    FILTER_DIM,
    GLOBAL_BATCH,
    HIDDEN,
    NUM_STEPS,
    STUDENT_LAYERS,
    WEIGHTS,
    batches,
    config,
    load_tapped,
    plan,
    samples,
    start_engine,
)
from tests.task_kinds import TASK_TERMS
from tests.tiny import LABELS, distill_plan, write_model

BLOCKS, NUM_FROZEN = [0, 1, 3], 2
TEACHER_LAYERS = (2, 4)
"""Beside student layers 1 and 2: that of the first pair is lent, and not the student's own of that pair."""
FROZEN = {
    "causal_lm": ("model.embed_tokens.", "model.layers.0.", "model.layers.1."),
    "sequence_classification": ("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1."),
}
KINDS = [*FROZEN]
SAVED_AFTER = 1
GRADIENT = 6e-5
"""Of the norm of the reference: what the invariance matrix allows fp32."""


def banks() -> tuple[FilterBank, FilterBank]:
    """The student's filters, and the teacher's."""
    torch.manual_seed(11)
    own, teachers = (FilterBank(layers, HIDDEN, FILTER_DIM) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    return own, teachers.requires_grad_(False)


def train_plainly(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients of the first step, and what trains after all: each model by itself, on whole batches."""
    own, teachers = (bank.double() for bank in banks())
    modules: dict[str, Any] = {"student_bank": own, "teacher_bank": teachers}
    modules["teacher"] = load_tapped(folder / "teacher", kind, TEACHER_LAYERS).double().eval()
    modules["student"] = load_tapped(folder / "student", kind, STUDENT_LAYERS).double().train()
    trained = {
        **{f"tapped.model.{name}": one for name, one in modules["student"].model.named_parameters()},
        **{f"bank.{name}": one for name, one in own.named_parameters()},
    }
    frozen = tuple(f"tapped.model.{name}" for name in FROZEN[kind])
    trained = {name: one for name, one in trained.items() if not name.startswith(frozen)}
    everything, first = samples(kind), dict[str, torch.Tensor]()
    for step in range(NUM_STEPS):
        loss, _ = plain_loss("distill", kind, modules, everything[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH])
        gradients = dict(zip(trained, torch.autograd.grad(loss, [*trained.values()]), strict=True))
        first = first or gradients
        with torch.no_grad():
            for name, one in trained.items():
                one -= plan(0.0).learning_rate * gradients[name]
    return first, {name: one.detach() for name, one in trained.items()}


def build(world: Any, folder: Path, kind: str, stage: int, *, sharded: bool) -> Any:
    """An engine, what it trains and for what, and the teacher, which begins behind the student's first blocks."""
    ds_config = config(stage, world.size, 0.0)
    shard = frozen_engine_config(ds_config, "fp32") if sharded else None
    if shard:
        shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    student = load_tapped(folder / "student", kind, STUDENT_LAYERS, shard=ds_config if stage == 3 else None)
    freeze_prefix(student.model, student.family, NUM_FROZEN)
    tapped = load_tapped(folder / "teacher", kind, TEACHER_LAYERS, shard=shard)
    teacher = FrozenModel(tapped, device=world.device, engine_config=shard)
    number, differing = num_equal(student, teacher.tapped, NUM_FROZEN)
    assert (number, differing) == (NUM_FROZEN, None)
    teacher.begin_behind(number, PrefixStates(student, [number]))
    own, teachers = banks()
    module = FilteredModel(student, own)
    objective = DistillObjective(
        TASK_TERMS[kind],
        distill_plan(**WEIGHTS),
        teacher=teacher,
        teacher_filters=teachers,
        student_layers=STUDENT_LAYERS,
    )
    return start_engine(world, module, ds_config), module, objective, teacher


def go_on(world: Any, folder: Path, kind: str, stage: int, place: Path, *, sharded: bool) -> dict[str, torch.Tensor]:
    """Whole weights after the steps that are left, from what was saved in ``place`` on all ranks."""
    world.sum_on_host(torch.zeros(1))  # all files are there
    engine, module, objective, teacher = build(world, folder, kind, stage, sharded=sharded)
    engine.load(place)
    steps = batches(world, kind)
    for _ in range(SAVED_AFTER):
        next(steps)
    for _ in range(NUM_STEPS - SAVED_AFTER):
        engine.step(steps, objective)
    again = full_state_dict(module, keep=world.is_main)
    engine.release()
    teacher.release()
    return again


def train_on_ranks(world: Any, root: Path, cases: list[tuple[str, int, bool]]) -> dict[Any, dict[str, Any]]:
    """Of each case, the first step's gradients, whole weights after all, and again after going on from a checkpoint."""
    results = {}
    for kind, stage, sharded in cases:
        place = root / f"{kind}_{stage}_{sharded}_{world.size}"
        engine, module, objective, teacher = build(world, root / kind, kind, stage, sharded=sharded)
        steps, gradients = batches(world, kind), {}
        for number in range(NUM_STEPS):
            if number == SAVED_AFTER:
                for file, content in engine.states(place).items():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    torch.save(content, file)
            engine.accumulate(steps, objective)
            if not gradients:
                gradients = dict(engine.gradients())
            engine.update()
        whole = full_state_dict(module, keep=world.is_main)
        engine.release()
        teacher.release()
        again = go_on(world, root / kind, kind, stage, place, sharded=sharded) if world.size > 1 else whole
        results[kind, stage, sharded] = {
            "gradients": gradients,
            "weights": whole,
            "resumed": [name for name in whole if not torch.equal(whole[name], again[name])],
        }
    return results


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frozen")
    for kind in KINDS:
        labels = None if kind == "causal_lm" else LABELS
        teacher = write_model(root / kind / "teacher", MODEL_TYPE[kind], blocks=4, labels=labels, seed=1)
        family = family_of(MODEL_TYPE[kind])
        cut(teacher, root / kind / "student", blocks=BLOCKS, family=family, origins=Origins(teacher, None))
    return root


@pytest.fixture(scope="module")
def expected(models: Path) -> dict[str, Any]:
    return {kind: train_plainly(models / kind, kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("world_size", "kinds", "variants"),
    [
        (2, KINDS[:1], [(2, False), (3, True)]),
        *(
            pytest.param(world_size, KINDS, variants, marks=pytest.mark.slow)
            for world_size, variants in (
                (2, [(0, True), (1, False), (3, False), (3, True)]),
                (1, [(0, False), (3, True)]),
                (4, [(2, True), (3, False)]),
            )
        ),
    ],
    ids=["2", "2-of-others", "1", "4"],
)
def test_both_models_behind_one_prefix_are_both_models_apart(
    models: Path, expected: dict[str, Any], world_size: int, kinds: list[str], variants: list[tuple[int, bool]]
) -> None:
    cases = [(kind, *one) for kind in kinds for one in variants]
    main, *others = run_ranks(train_on_ranks, world_size, models, cases)
    for kind, stage, sharded in cases:
        result, where = main[kind, stage, sharded], f"{kind} under ZeRO-{stage}, teacher sharded: {sharded}"
        gradients, weights = expected[kind]
        assert result["gradients"].keys() == gradients.keys(), where
        whole = torch.stack([one.norm() for one in gradients.values()]).norm()
        for name, got in result["gradients"].items():
            own = gradients[name].norm()  # none at all of a bias that softmax takes no notice of
            error = (got.double() - gradients[name]).norm() / (own if own > NOTHING * whole else whole)
            assert error <= GRADIENT, f"{where}: {name} is off by {error:.1e} of its gradient"
        before = load_tapped(models / kind / "student", kind, ()).model.state_dict()
        for name, got in result["weights"].items():
            if name in weights:
                assert torch.allclose(got.double(), weights[name], **TOLERANCE), f"{where}: {name}"
            else:
                assert torch.equal(got, before[name.removeprefix("tapped.model.")]), f"{where}: {name} does not train"
        assert {*weights} < {*result["weights"]}, where
        assert not result["resumed"], f"{where}: not the same after going on"
        for one in others:
            assert one[kind, stage, sharded]["gradients"].keys() == gradients.keys(), where
