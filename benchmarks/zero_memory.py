"""What DeepSpeed holds on a rank, beside what ``ted-ds check`` says it will.

    python -m benchmarks.zero_memory [--quick] [--json FILE]

Real engines on 1, 2 and 4 ranks take a step of TED, and accumulate the next one's gradients; then every tensor that is
alive is counted, by the memory it has. The plan's arithmetic (:mod:`ted_ds.planning.memory`) is to be within 5 % of it.
All in bytes of the rank that holds most, so any machine gives the same numbers.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks import Orders, Ranks
from benchmarks.report import at_most, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, ByTedDs, Shape, gpt2, new_model
from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.models.files import read_model_facts
from ted_ds.models.loading import LoadSettings, load_model
from ted_ds.planning.memory import Trained, frozen_bytes, trained_bytes
from ted_ds.runtime.frozen import frozen_engine_config
from ted_ds.runtime.sharding import collect_garbage, sharded_loading
from ted_ds.runtime.step_runner import EngineSettings
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner

GOAL = 0.05
RANKS = {False: (1, 2, 4), True: (2,)}
CASES = [
    f"{stage} {precision} {host}"
    for precision in DTYPES
    for stage, host in itertools.product((0, 1, 2, 3), ("replica", "zero3"))
    # DeepSpeed's own way with 16 bits begins at stage 1; and one host for each stage is enough
    if (stage, precision) != (0, "bf16") and host == ("zero3" if stage == 3 else "replica")
]
PARTS = ("parameters", "gradients", "optimizer", "teacher")
# its own buffers for communication are of a fixed size, half a billion numbers by default, and no part of the plan
BUCKET = 100_000


SHAPE = Shape("GPT-2 type 10>8", gpt2(10, 256, 8000), gpt2(8, 256, 8000), 2, 64)


def write_models(folder: Path) -> None:
    """The teacher and the student."""
    for side, config in (("teacher", SHAPE.teacher), ("student", SHAPE.student)):
        new_model(SHAPE, config, torch.float32, torch.device("cpu")).save_pretrained(folder / side)


def work(folder: Path, orders: Orders) -> None:
    """One rank: for each case, the bytes of each part, and what the plan says of them."""
    world = World.join(600)
    orders.answer(lambda case: measure(world, folder, *_parse(case)))


def _parse(case: str) -> tuple[int, str, str]:
    stage, precision, host = case.split()
    return int(stage), precision, host


def measure(world: World, folder: Path, stage: int, precision: str, host: str) -> dict[str, list[int]]:
    """Measured bytes and planned bytes of each part, on this rank."""
    before = _storages(_alive())
    plan = PhasePlan(max_steps=9, learning_rate=1e-6, global_batch_size=4 * world.size, micro_batch_size=2)
    zero = {"stage": stage, "reduce_bucket_size": BUCKET}
    raw = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": zero}
    config = complete(raw, plan, plan_path="plan", precision=precision, world_size=world.size, source=Path("benchmark"))
    frozen_config = frozen_engine_config(config, precision) if host == "zero3" else None

    def load(side: str) -> Any:
        shard = frozen_config if side == "teacher" else config if stage == 3 else None
        context = sharded_loading(shard) if shard else contextlib.nullcontext()
        return load_model(folder / side, LoadSettings(DTYPES[precision], context), head=None)[0]

    models = ByTedDs(SHAPE, DTYPES[precision], world.device, load=load, teacher_config=frozen_config)
    sizes = [getattr(one, "ds_numel", one.numel()) for one in models.module.parameters()]
    engine = ZeroRunner(
        models.module,
        EngineSettings(
            config=config, schedule="constant", warmup_steps=0, max_steps=9, weight_decay=0.1, dtype=DTYPES[precision]
        ),
        world=world,
        watched={},
    )
    objective, batches = models.objective("ted"), itertools.repeat([models.batch] * 2)
    engine.step(batches, objective)
    engine.accumulate(batches, objective)
    measured = _by_part(engine.engine, models, before)
    engine.release()
    models.teacher.release()
    del engine, models, objective, batches
    collect_garbage()
    trained: Trained = trained_bytes(sizes, config=config, precision=precision, world_size=world.size)
    teacher = frozen_bytes(
        read_model_facts(folder / "teacher").parameters, host=host, precision=precision, world_size=world.size
    )
    planned = [trained.parameters, trained.gradients, trained.optimizer, teacher]
    return {part: [measured[part], one] for part, one in zip(PARTS, planned, strict=True)}


def _by_part(engine: Any, models: ByTedDs, before: dict[int, int]) -> dict[str, int]:
    gc.collect()
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    trained = list(models.module.parameters())
    of_optimizer = [value for state in inner.state.values() for value in state.values()]
    # of ZeRO 1 and 2, of bf16's own optimizer, of ZeRO 3
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        of_optimizer += getattr(optimizer, name, [])
    masters = [group for groups in inner.param_groups for group in groups["params"]]
    gradients = [one.grad for one in [*trained, *masters]]
    found: dict[str, int] = {}
    seen = dict(before)
    for part, tensors in (
        ("teacher", _held(models.teacher_parameters())),
        ("filters and batch", [*models.teacher_filters.parameters(), *vars(models.batch).values()]),
        ("parameters", _held(trained)),
        ("optimizer", of_optimizer),
        ("gradients", [*gradients, *_alive()]),  # whatever else there is
    ):
        storages = {place: size for place, size in _storages(tensors).items() if place not in seen}
        found[part] = sum(storages.values())
        seen |= storages
    return found


def _held(parameters: Iterable[Any]) -> list[Any]:
    return [held for one in parameters for held in (one.data, getattr(one, "ds_tensor", None))]


def _alive() -> list[Any]:
    return [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes by address, each memory once."""
    real = [one for one in tensors if isinstance(one, torch.Tensor) and one.device.type != "meta"]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in real}


def main() -> None:
    """Measure, and publish."""
    options = option_parser(__doc__, quick="two ranks alone").parse_args()
    torch.set_num_threads(1)  # ranks are copies of this process
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for count in RANKS[options.quick]:
            ranks = Ranks(work, (Path(folder),), count)
            try:
                for case in CASES:
                    stage, precision, host = _parse(case)
                    answers = ranks.ask(case)
                    parts = {part: [max(one[part][i] for one in answers) for i in (0, 1)] for part in PARTS}
                    name = f"ZeRO-{stage} {precision}, teacher {host}, {count} ranks"
                    rows.append([name, *(f"{m / 1e6:.1f} / {p / 1e6:.1f}" for m, p in parts.values())])
                    worst = max(abs(planned / measured - 1) for measured, planned in parts.values())
                    claims.append(at_most(f"worst part, planned / measured - 1: {name}", worst, GOAL))
            finally:
                ranks.stop()
    title = f"{SHAPE.name}: megabytes on the rank that holds most, measured / planned"
    packages = ("torch", "deepspeed", "transformers")
    publish([table(title, ["", *PARTS], rows)], claims, versions=installed(packages), json_path=options.json)


if __name__ == "__main__":
    main()
