"""Steps through DeepSpeed's engine on one rank: how long they take, and where the host waits for the device."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch

from benchmarks.steps import DTYPES, ByTedDs, Shape, new_batch
from benchmarks.timing import synchronise
from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.runtime.step_runner import EngineSettings
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner
from tests.waits import waits_of

MAX_STEPS = 10**6


def engine_steps(shape: Shape, stage: int, num_micro: int, *, rounds: int) -> tuple[list[float], list[str]]:
    """Seconds of steps of ``num_micro`` microbatches of TED with KL in bf16, and each place that waits in one step."""
    world = World.join(600)
    models = ByTedDs(shape, DTYPES["bf16"], world.device)
    plan = PhasePlan(
        max_steps=MAX_STEPS,
        learning_rate=1e-6,
        global_batch_size=num_micro * shape.rows,
        micro_batch_size=shape.rows,
    )
    config = {
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {
            "stage": stage,
            # as in the files that ship: with it the optimizer waits for the device behind each microbatch
            "overlap_comm": stage > 1,
            # DeepSpeed's buckets of half a billion numbers would be most of what there is here
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }
    engine = ZeroRunner(
        models.module,
        EngineSettings(
            config=complete(
                config,
                plan,
                plan_path="plan",
                precision="bf16",
                world_size=1,
                source=Path("benchmark"),
                on_gpu=world.device.type == "cuda",
            ),
            schedule="constant",
            warmup_steps=0,
            max_steps=MAX_STEPS,
            weight_decay=0.0,
            dtype=DTYPES["bf16"],
        ),
        world=world,
        watched=models.module.tapped.named_layers(),
    )
    objective = models.objective("ted")
    batch = new_batch(shape, torch.device("cpu"))
    batches = itertools.repeat([batch] * num_micro)
    seconds = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        assert engine.step(batches, objective) is None
        synchronise()
        if number:
            seconds.append(time.perf_counter() - started)
    waits = waits_of(lambda: engine.step(batches, objective))
    engine.release()
    return seconds, waits
