"""Stage II's teacher from a cache: how large that gets, what it depends on, and how the ranks fill it together."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assemble import Assembly
from ted_ds.assemble_stages import teacher_bank
from ted_ds.config.tasks import CausalLm
from ted_ds.data.labelled_stream import samples_sha256
from ted_ds.data.samples import Sample
from ted_ds.data.tasks import LabelledData
from ted_ds.errors import ConfigError
from ted_ds.memory import gib
from ted_ds.models.predictions import Predictions
from ted_ds.numerics.filters import FilterBank
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.teacher_cache.cached import CachedTeacher
from ted_ds.teacher_cache.store import PartWriter, Reader, Record, finish, is_complete

CACHE_FOLDER = "teacher_cache"
NUM_REPORTS = 10
"""Of how far it is filled."""
FEWEST_PASSES = 2
"""Over the examples; below, the teacher would not run less often."""


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold."""

    record: Record
    samples: list[Sample]
    num_bytes: int
    passes: float
    """How often Stage II sees each example."""
    root: Path
    """Where caches are."""

    def __str__(self) -> str:
        return (
            f"teacher cache: {len(self.samples):,} examples, {gib(self.num_bytes)} in {self.root}, each seen "
            f"{self.passes:.1f} times"
        )


def plan_cache(build: Assembly) -> CachePlan | None:
    """The cache that the recipe asks for; None where it asks for none."""
    recipe, settings = build.recipe, build.recipe.teacher.cache
    if settings is None:
        return None
    assert isinstance(build.data, LabelledData)
    samples = build.data.train
    layers = len(build.plan.layer_pairs)
    assert not isinstance(recipe.task, CausalLm)  # as the recipe says
    outputs = recipe.task.num_outputs if recipe.distill.kl_weight > 0 else 0
    record = Record(layers, build.plan.filter_dim if layers else 0, outputs, settings.precision)
    return CachePlan(
        record,
        samples,
        sum(record.num_bytes(len(sample.input_ids)) for sample in samples),
        recipe.distill.max_steps * recipe.distill.global_batch_size / len(samples),
        settings.dir or recipe.output_dir / CACHE_FOLDER,
    )


def refuse_large_cache(build: Assembly) -> None:
    """Make sure, before anything starts, that the cache may be as large as it will be, and fits on the disk.

    Raises:
        ConfigError: It may not, or does not.
    """
    plan, settings = plan_cache(build), build.recipe.teacher.cache
    if plan is None or settings is None:
        return
    if plan.num_bytes > settings.max_gib * 2**30:
        fewer = "precision: int8, " if settings.precision == "bf16" else ""
        raise ConfigError(
            f"teacher.cache.max_gib: {settings.max_gib:g} is less than the {gib(plan.num_bytes)} that "
            f"{len(plan.samples):,} examples need; raise it, use {fewer}a smaller filters.dim or fewer layers, or "
            "remove teacher.cache"
        )
    there = next(folder for folder in (plan.root, *plan.root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if plan.num_bytes > free and not any(map(is_complete, there.glob("*"))):
        raise ConfigError(f"teacher.cache: {gib(plan.num_bytes)} do not fit into the {gib(free)} free in {there}")


def cached_teacher(
    build: Assembly,
    *,
    teacher: Path,
    filters: Path | None,
    depends_on: Mapping[str, Any],
    vet: Callable[[FrozenModel], None],
) -> CachedTeacher | None:
    """The teacher as the cache has it, which is filled first where it is not there. Every rank must call it.

    Args:
        build: The run's assembly.
        teacher: The teacher's folder.
        filters: That of its learned filters, for ``ted``.
        depends_on: Identities of both.
        vet: Takes the teacher before it fills the cache.

    Returns:
        None where the recipe asks for no cache, or examples are seen too seldom for one.

    Raises:
        StopNow: Any rank was asked to stop while it was filled; on every rank.
        TedError: The cache cannot be written or read; on every rank.
    """
    plan, world = plan_cache(build), build.world
    if plan is None:
        return None
    build.screen.say(f"  {plan}")
    if plan.passes < FEWEST_PASSES:
        build.screen.say("  not used: the teacher runs as often without it")
        return None
    about = _about(build, plan, depends_on)
    place = plan.root / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    if not world.on_main(lambda: is_complete(place)):
        _fill(build, plan, place, teacher=teacher, filters=filters, about=about, vet=vet)
    reader: Reader | None = None
    with world.together():
        if not is_complete(place):
            raise ConfigError(f"teacher.cache.dir: {place} was written by other ranks and is not seen here; share it")
        reader = Reader(place, plan.record)
    assert reader is not None
    return CachedTeacher(reader, dtype=build.dtype, side=build.recipe.data.padding.side)


def retire_cache(build: Assembly) -> None:
    """Remove this run's own cache; one in a folder that runs share stays. On one rank only."""
    settings = build.recipe.teacher.cache
    if settings is not None and settings.dir is None:
        shutil.rmtree(build.recipe.output_dir / CACHE_FOLDER, ignore_errors=True)


def _about(build: Assembly, plan: CachePlan, depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is in a cache: the samples are the data as the tokenizer reads it."""
    recipe = build.recipe
    return {
        "samples_sha256": samples_sha256(plan.samples),
        "layers": list(build.layers("teacher")),
        "record": str(plan.record),
        "precision": recipe.precision,
        "method": recipe.distill.method,
        **depends_on,
    }


@torch.no_grad()
def _fill(
    build: Assembly,
    plan: CachePlan,
    place: Path,
    *,
    teacher: Path,
    filters: Path | None,
    about: dict[str, Any],
    vet: Callable[[FrozenModel], None],
) -> None:
    """Run the teacher over all examples, each rank over its share, in batches that any number of ranks would make."""
    world, unfinished = build.world, place.with_name(f".{place.name}.unfinished")

    def prepare() -> None:
        retire_cache(build)  # what another teacher, filters or data left here
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)

    world.on_main(prepare)
    bank: FilterBank | None = None
    with world.together():
        bank = teacher_bank(build, filters)
    frozen = build.frozen_model("teacher", teacher, build.layers("teacher"))
    vet(frozen)
    if not plan.record.num_outputs:
        build.drop_beyond_taps(frozen)
    writer: PartWriter | None = None
    with world.together():
        writer = PartWriter(unfinished, world.rank, plan.record)
    assert writer is not None
    size = build.recipe.evaluation.micro_batch_size
    by_length = sorted(plan.samples, key=lambda sample: (len(sample.input_ids), sample.index))
    shares = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    rounds = -(-len(shares) // world.size)  # as many on every rank, which a sharded teacher needs
    build.screen.start("teacher cache", rounds)
    started = time.monotonic()
    try:
        for number in range(rounds):
            build.stop_if_asked()
            mine = shares[number * world.size + world.rank :][:1]
            _run_teacher(build, frozen, bank, mine[0] if mine else [], writer, size, plan.record)
            if (number + 1) % -(-rounds // NUM_REPORTS) == 0:
                elapsed = time.monotonic() - started
                build.screen.update(number + 1, {}, remaining_s=elapsed / (number + 1) * (rounds - number - 1))
        with world.together():
            writer.close()
    finally:
        build.screen.stop()
        frozen.release()
    del frozen
    collect_garbage()
    world.on_main(lambda: finish(unfinished, place, plan.record, about=about, num_parts=world.size))


def _run_teacher(
    build: Assembly,
    frozen: FrozenModel,
    bank: FilterBank | None,
    samples: list[Sample],
    writer: PartWriter,
    rows: int,
    record: Record,
) -> None:
    """Write down what the teacher says of one microbatch."""
    batch = build.collate([*samples, *[None] * (rows - len(samples))]).to(build.world.device)
    states: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def keep_state(place: int, state: Tensor) -> None:
        assert bank is not None
        states[place] = bank.filters[place](state)

    def keep_outputs(predictions: Predictions | None) -> None:
        if predictions is not None:
            outputs.append(predictions.outputs(batch.labels))

    frozen.teach(
        batch,
        keep_outputs,
        with_predictions=record.num_outputs > 0,
        on_state=keep_state if record.num_layers else None,
    )
    for row, sample in enumerate(samples):
        kept = batch.kept_tokens[row]
        writer.add(
            sample.index,
            outputs[0][row] if outputs else None,
            [states[place][row][kept] for place in sorted(states)],
            tokens=len(sample.input_ids),
        )
