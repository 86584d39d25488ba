"""What a checkpoint costs: how long training waits for it, written while it goes on or not.

    python -m benchmarks.checkpoint [--quick] [--json FILE]

One rank trains a Llama-type student of random weights with Adam under ZeRO-1. In turns, the same number of steps run
without a checkpoint, with one that training waits for, and with one that is written beside it. What is measured is
how long the loop is held (copying, waiting, and putting the checkpoint in its place), and how much longer the steps
take in all, in which the writer competes for the same cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.report import at_most, installed, option_parser, publish, table
from ted_ds.config.deepspeed import complete
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.loader import Batch
from ted_ds.models.families import family_of
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.task_terms import CAUSAL_LM
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.runtime.checkpoints.folders import Retention
from ted_ds.runtime.checkpoints.origin import Origin
from ted_ds.runtime.checkpoints.saving import Checkpoints
from ted_ds.runtime.determinism import random_state
from ted_ds.runtime.step_runner import EngineSettings
from ted_ds.runtime.world import World
from ted_ds.runtime.zero_runner import ZeroRunner

STALL_GOAL = 0.2


class Size(NamedTuple):
    """The student, and how often everything is measured."""

    hidden: int
    blocks: int
    vocab: int
    rounds: int


SIZES = {False: Size(512, 8, 32_000, 7), True: Size(192, 4, 16_000, 7)}
CONFIG = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": {"stage": 1}}


class Cost(NamedTuple):
    """Of one checkpoint, in seconds."""

    held_s: float
    """The loop is held, in all."""
    extra_s: float
    """The steps take so much longer than without one."""


class Training:
    """An engine that can always take another step."""

    def __init__(self, world: World, size: Size, folder: Path) -> None:
        config = LlamaConfig(
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            intermediate_size=4 * size.hidden,
            num_hidden_layers=size.blocks,
            num_attention_heads=size.hidden // 64,
        )
        torch.manual_seed(0)
        model = TappedModel(LlamaForCausalLM(config), family_of("llama"), ())
        plan = PhasePlan(max_steps=10**6, learning_rate=1e-4, global_batch_size=1, micro_batch_size=1)
        ds_config = complete(CONFIG, plan, plan_path="plan", precision="fp32", world_size=1, source=Path("benchmark"))
        self._engine = ZeroRunner(
            model,
            EngineSettings(
                config=ds_config,
                schedule="constant",
                warmup_steps=0,
                max_steps=plan.max_steps,
                weight_decay=0.0,
                dtype=torch.float32,
            ),
            world=world,
            watched={},
        )
        self._objective = FinetuneObjective(CAUSAL_LM)
        self._world, self._batches, self._step = world, _batches(size.vocab), 0
        self.checkpoints = Checkpoints(
            folder, world, origin=Origin("benchmark", {}, folder), retention=Retention(1), say=lambda _: None
        )
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())

    def steps(self, count: int, *, save: str | None) -> tuple[float, float]:
        """Take steps, and a checkpoint after the first, ``waiting`` or ``beside``; seconds in all, and held by it."""
        held_before, started = self.checkpoints.stalled_s, time.perf_counter()
        for number in range(count):
            self.checkpoints.advance(*self.checkpoints.signs)
            self._engine.step(self._batches, self._objective)
            self._step += 1
            if number == 0 and save is not None:
                of_rank = {"random": random_state(), "unreported": self._engine.unreported()}
                self.checkpoints.begin(self._engine, self._step, state={}, of_rank=of_rank, texts={}, best=None)
                if save == "waiting":
                    self.checkpoints.finish()
        seconds = time.perf_counter() - started
        still_writing = self.checkpoints.is_open
        self.checkpoints.finish()
        if still_writing and save == "beside":
            raise RuntimeError(f"{count} steps ended before the checkpoint was written; take more of them")
        return seconds, self.checkpoints.stalled_s - held_before


def _batches(vocab: int) -> Iterator[list[Batch]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        ids = torch.randint(vocab, (1, 128), generator=generator)
        yield [Batch(ids, torch.ones_like(ids), ids, torch.ones_like(ids, dtype=torch.bool))]


def measure(training: Training, rounds: int) -> tuple[dict[str, Cost], int]:
    """The median cost of each way to save, and the bytes of a checkpoint."""
    training.steps(2, save="waiting")  # the first allocates
    folder = training.checkpoints.folders
    num_bytes = sum(record.num_bytes for record in folder.manifest(folder.steps()[-1])["files"].values())
    step_s = training.steps(3, save=None)[0] / 3
    _, write_s = training.steps(1, save="waiting")
    count = max(4, int(2.5 * write_s / step_s) + 3)  # many enough that it is written before they end
    plain: list[float] = []
    measured: dict[str, list[tuple[float, float]]] = {"waiting": [], "beside": []}
    for _ in range(rounds):
        plain.append(training.steps(count, save=None)[0])
        for save, found in measured.items():
            found.append(training.steps(count, save=save))
    costs = {
        save: Cost(
            median(held for _, held in found),
            median(seconds - without for (seconds, _), without in zip(found, plain, strict=True)),
        )
        for save, found in measured.items()
    }
    return costs, num_bytes


def main() -> None:
    """Measure, and publish."""
    parser = option_parser(__doc__, quick="a smaller model")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: the temporary folder)")
    options = parser.parse_args()
    size = SIZES[options.quick]
    world = World.join(600)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        training = Training(world, size, Path(folder))
        costs, num_bytes = measure(training, size.rounds)
    waiting, beside = costs["waiting"], costs["beside"]
    rows = [
        [
            {"waiting": "training waits", "beside": "written beside training"}[save],
            f"{cost.held_s:.3f}",
            f"{cost.extra_s:.3f}",
            f"{num_bytes / 1e6:.0f}",
            f"{num_bytes / training.num_parameters:.1f}",
            f"{num_bytes / 1e6 / waiting.held_s:.0f}" if save == "waiting" else "",
        ]
        for save, cost in costs.items()
    ]
    columns = ["checkpoint", "loop held, s", "steps longer, s", "MB", "bytes per parameter", "MB/s, hashed and synced"]
    title = (
        f"a checkpoint of {training.num_parameters / 1e6:.1f} M trained parameters, fp32, Adam, median of {size.rounds}"
    )
    claims = [
        at_most("loop held, beside / waiting", beside.held_s / waiting.held_s, STALL_GOAL),
        at_most("steps longer, beside / waiting", beside.extra_s / waiting.extra_s, STALL_GOAL),
    ]
    packages = ("torch", "deepspeed", "transformers")
    publish([table(title, columns, rows)], claims, versions=installed(packages), json_path=options.json)


if __name__ == "__main__":
    main()
    os._exit(0)  # a process with gloo threads may abort in a normal exit
