"""ZeRO 0-3 on one and two ranks, of models with a tokenizer each: against plain transformers in fp64 on each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ted_ds.models.student import FilteredModel
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config
from ted_ds.runtime.sharding import full_state_dict
from ted_ds.runtime.world import World
from tests.dist import run_ranks
from tests.distributed.steps import training_steps
from tests.distributed.training import GLOBAL_BATCH, MICRO_BATCH, config, load_tapped, plan, start_engine
from tests.parity.test_two_tokenizers import (
    CASES,
    LAYERS,
    ONE_CLASS,
    SIDES,
    banks_of,
    objective_of,
    plain_gradients,
    plain_modules,
    readers_of,
    rows_of,
    write_pair,
)

CASE = CASES["its last token"]
NUM_STEPS = 2
# weights of size ~0.3 after two fp32 steps
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def run_stages(world: World, folder: Path) -> list[tuple[dict[str, torch.Tensor], list[dict[str, float]]]]:
    """Weights and reports under each stage of ZeRO; the teacher is sharded where the student is."""
    found = []
    reader = readers_of(folder, CASE).of(*SIDES)
    for stage in range(4):
        ds_config, banks = config(stage, world.size, 0.0), banks_of(CASE)
        shard: dict[str, Any] | None = None
        if stage == 3:
            shard = {**frozen_engine_config(ds_config, "fp32")}
            shard["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        body = load_tapped(folder / "teacher", ONE_CLASS, LAYERS["teacher"], shard=shard)
        teacher = FrozenModel(body, device=world.device, engine_config=shard)
        own = load_tapped(folder / "student", ONE_CLASS, LAYERS["student"], shard=ds_config if stage == 3 else None)
        module = FilteredModel(own, banks["student"])
        engine = start_engine(world, module, ds_config, max_steps=NUM_STEPS)
        objective = objective_of(CASE, own, teacher, banks["teacher"])
        steps = training_steps(
            iter(reader.data.train),
            reader.collate,
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=MICRO_BATCH,
            rank=world.rank,
            world_size=world.size,
        )
        reports = []
        for _ in range(NUM_STEPS):
            engine.step(steps, objective)
            reports.append(engine.report(objective))
        found.append((full_state_dict(module, keep=world.is_main), reports))
        teacher.release()
        engine.release()
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], list[dict[str, float]]]:
    """The models, and what plain SGD makes of them."""
    folder = tmp_path_factory.mktemp("two_tokenizers")
    write_pair(folder, CASE)
    rows, modules = rows_of(folder, CASE), plain_modules(folder, CASE)
    reports = []
    for step in range(NUM_STEPS):
        _, terms, _ = plain_gradients(folder, CASE, rows[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH], modules)
        reports.append(terms)
        with torch.no_grad():
            for parameter in modules["student"].parameters():
                parameter -= plan(0.0).learning_rate * (0 if parameter.grad is None else parameter.grad)
    weights = {}
    for name, parameter in modules["student"].named_parameters():
        weights[f"tapped.{name}" if name.startswith("model.") else name] = parameter.detach()
    return folder, weights, reports


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_of_zero_takes_the_steps_of_plain_transformers(reference: Any, world_size: int) -> None:
    folder, weights, reports = reference
    results = run_ranks(run_stages, world_size, folder)
    for stage, (got, _) in enumerate(results[0]):
        assert got.keys() == weights.keys()
        for name, expected in weights.items():
            torch.testing.assert_close(
                got[name].double(),
                expected,
                **TOLERANCE,
                msg=lambda text, name=name, stage=stage: f"{stage} {name}: {text}",
            )
    for of_rank in results:  # every rank reports the terms of the whole batch
        for _, of_stage in of_rank:
            for found, expected in zip(of_stage, reports, strict=True):
                assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-5)
