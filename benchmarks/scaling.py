"""How much of a second rank's work arrives: tokens per second at one and two ranks, as much work for each.

    python -m benchmarks.scaling [--quick] [--json FILE]

Every rank is a process of its own, bound to one core, with one thread. Two of them train together under ZeRO-2, one by
itself, and two each by itself at the same time: what those lose, the machine's caches and memory cost, and no software
that uses both cores could win back. The three take turns. The step is TED with KL, through the engine.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.ranks import Orders, Ranks
from benchmarks.report import at_least, installed, option_parser, publish, table
from benchmarks.steps import DTYPES, SHAPES, ByTedDs, Shape
from benchmarks.timing import ratio
from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.runtime.host_allocator import keep_freed_memory
from ted_ds.runtime.step_runner import EngineSettings
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner

GOAL, ROUNDS = 0.9, 7
ALONE, SIDE_BY_SIDE, TOGETHER = "1 rank", "2 separate ranks", "2 ranks together"
STEPS = 2
CONFIG = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": {"stage": 2}}


def work(shape: Shape, dtype: str, orders: Orders) -> None:
    """One rank: take as many steps as it is told to, and say how long they took."""
    keep_freed_memory()  # as a run does
    world = World.join(600)
    torch.manual_seed(0)
    models = ByTedDs(shape, DTYPES[dtype], world.device)
    plan = PhasePlan(
        max_steps=10**6, learning_rate=1e-6, global_batch_size=shape.rows * world.size, micro_batch_size=shape.rows
    )
    engine = ZeroRunner(
        models.module,
        EngineSettings(
            config=complete(
                CONFIG, plan, plan_path="plan", precision=dtype, world_size=world.size, source=Path("benchmark")
            ),
            schedule="constant",
            warmup_steps=0,
            max_steps=plan.max_steps,
            weight_decay=0.0,
            dtype=DTYPES[dtype],
        ),
        world=world,
        watched={},
    )
    objective, batches = models.objective("ted"), itertools.repeat([models.batch])

    def steps(count: str) -> float:
        started = time.perf_counter()
        for _ in range(int(count)):
            engine.step(batches, objective)
        return time.perf_counter() - started

    orders.answer(steps)


def main() -> None:
    """Measure, and publish."""
    options = option_parser(__doc__).parse_args()
    shape, dtype = SHAPES[options.quick][0], "bf16"
    first, second, both = groups = [
        Ranks(work, (shape, dtype), size, one_core_each=True, first_core=core)
        for size, core in ((1, 0), (1, 1), (2, 0))
    ]
    contenders = {ALONE: [first], SIDE_BY_SIDE: [first, second], TOGETHER: [both]}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for ranks in groups:
            ranks.ask("1")
        for _ in range(ROUNDS):
            for name, at_once in contenders.items():
                for ranks in at_once:
                    ranks.tell(str(STEPS))
                taken[name].append(max(max(ranks.answers()) for ranks in at_once) / STEPS)
    finally:
        for ranks in groups:
            ranks.stop()
    tokens = shape.rows * shape.tokens_per_row
    rows = [
        [name, f"{median(seconds) * 1000:,.0f}", f"{(1 if name == ALONE else 2) * tokens / median(seconds):,.0f}"]
        for name, seconds in taken.items()
    ]
    title = f"{shape.name} {dtype}, {shape.tokens} tokens a rank and step, median of {ROUNDS}"
    case = f"{shape.name} {dtype}"
    claims = [
        at_least(f"weak scaling, 2 ranks: {case}", ratio(taken, ALONE, TOGETHER), GOAL),
        at_least(f"of what two separate ranks get at once: {case}", ratio(taken, SIDE_BY_SIDE, TOGETHER), GOAL),
    ]
    packages = ("torch", "deepspeed", "transformers")
    shown = table(title, ["ranks", "ms a step", "tokens/s"], rows)
    publish([shown], claims, versions=installed(packages), json_path=options.json)


if __name__ == "__main__":
    main()
