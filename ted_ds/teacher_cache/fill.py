"""Stage II's teacher from a cache: how large that gets, what it depends on, and how the ranks fill it together."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import read_at, teacher_bank
from ted_ds.data.labelled_data import LabelledData
from ted_ds.data.labelled_stream import samples_sha256
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.models.predictions import Predictions
from ted_ds.numerics.filters import FilterBank
from ted_ds.planning.memory import gib
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.teacher_cache.cached import CachedTeacher
from ted_ds.teacher_cache.store import PartWriter, Reader, Record, finish, is_complete, read_about, written

CACHE_FOLDER = "teacher_cache"
READING = 2
"""The way in which texts are read, their positions and last tokens; a cache that was filled in another is not used."""
NUM_REPORTS = 10
"""Of how far it is filled."""


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold."""

    record: Record
    samples: list[Sample]
    num_bytes: int
    passes: float
    """How often Stage II sees each example, on average."""
    root: Path
    """Where caches are."""
    of_texts: bool
    """Whether a state of each text is kept, in the place of one of each token."""

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
    data, of_texts = build.readers.of("teacher").data, build.readers.are_two
    assert isinstance(data, LabelledData)
    samples = data.learned
    layers = len(build.plan.layer_pairs)
    outputs = recipe.task.num_outputs if recipe.distill.needs.predictions else 0
    record = Record(layers, build.plan.filter_dim if layers else 0, outputs, settings.precision)
    return CachePlan(
        record,
        samples,
        sum(record.num_bytes(1 if of_texts else len(sample.input_ids)) for sample in samples),
        recipe.distill.steps * recipe.distill.global_batch_size / len(samples),
        settings.dir or recipe.output_dir / CACHE_FOLDER,
        of_texts,
    )


def refuse_useless_cache(build: Assembly) -> None:
    """Make sure, before anything starts, that the cache will be used, may be as large as it gets, and fits on the disk.

    Raises:
        ConfigError: It will not, may not, or does not.
    """
    plan, settings = plan_cache(build), build.recipe.teacher.cache
    if plan is None or settings is None:
        return
    if plan.passes <= 1 and settings.dir is None:  # a folder of its own may serve other runs
        raise ConfigError(
            f"teacher.cache: Stage II sees {plan.passes:.2g} of {len(plan.samples):,} examples, none of them twice; "
            "remove it, raise distill.max_steps or distill.epochs, or give it a dir that runs share"
        )
    if plan.num_bytes > settings.max_gib * 2**30:
        fewer = "precision: int8, " if settings.precision == "bf16" else ""
        raise ConfigError(
            f"teacher.cache.max_gib: {settings.max_gib:g} is less than the {gib(plan.num_bytes)} that "
            f"{len(plan.samples):,} examples need; raise it, use {fewer}a smaller filters.dim or fewer layers, or "
            "remove teacher.cache"
        )
    there = next(folder for folder in (plan.root, *plan.root.absolute().parents) if folder.is_dir())
    own = sum(file.stat().st_size for folder in _unfinished(build, plan.root) for file in folder.iterdir())
    free = shutil.disk_usage(there).free + own
    whole = [place for place in plan.root.glob("*") if is_complete(place)]
    if plan.num_bytes > free and not any(_same_examples(plan, read_about(place)) for place in whole):
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
        None where the recipe asks for no cache.

    Raises:
        StopNow: Any rank was asked to stop while it was filled; on every rank.
        TedError: The cache cannot be written or read; on every rank.
    """
    plan, world = plan_cache(build), build.world
    if plan is None:
        return None
    about = _about(build, plan, depends_on)
    place = plan.root / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    if not world.on_main(lambda: is_complete(place)):
        _fill(build, plan, place, teacher=teacher, filters=filters, about=about, vet=vet)
    reader, side = world.agree(lambda: _open(plan, place)), build.recipe.data.padding.side
    return CachedTeacher(reader, dtype=build.dtype, side=side, of_texts=plan.of_texts)


def _open(plan: CachePlan, place: Path) -> Reader:
    if not is_complete(place):
        raise ConfigError(f"teacher.cache.dir: {place} was written by other ranks and is not seen here; share it")
    reader = Reader(place, plan.record)
    if len(reader) != len(plan.samples):
        raise CheckpointError(f"{place}: the teacher's cache lacks examples; remove it, and it is filled again")
    return reader


def retire_cache(build: Assembly) -> None:
    """Remove this run's own cache; of one in a folder that runs share, what is unfinished. On one rank only."""
    settings = build.recipe.teacher.cache
    if settings is None:
        return
    own = build.recipe.output_dir / CACHE_FOLDER
    for folder in [own] if settings.dir is None else _unfinished(build, settings.dir):
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(build: Assembly, root: Path) -> list[Path]:
    """What this run began to fill."""
    return list(root.glob(f".*.{build.run.run_id}"))


def _same_examples(plan: CachePlan, about: Mapping[str, Any]) -> bool:
    return about.get("samples_sha256") == samples_sha256(plan.samples) and about.get("record") == str(plan.record)


def _about(build: Assembly, plan: CachePlan, depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what is in a cache: the samples are the data as the tokenizer reads it."""
    recipe = build.recipe
    return {
        "samples_sha256": samples_sha256(plan.samples),
        "reading": READING,
        "layers": list(build.layers("teacher")),
        "record": str(plan.record),
        "precision": recipe.precision,
        "method": recipe.distill.method,
        "preflight": recipe.preflight,  # a teacher that was only warned of is not for a run that would refuse it
        **({"of_texts": recipe.filters.pooling if recipe.filters else "model"} if plan.of_texts else {}),
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
    """Run the teacher over all examples, each rank over its share, in batches that any number of ranks would make.

    Where it is stopped, it goes on the next time with the examples that are left.
    """
    world, unfinished = build.world, place.with_name(f".{place.name}.{build.run.run_id}")

    def prepare() -> set[int]:
        for other in (build.recipe.output_dir / CACHE_FOLDER).glob("*"):  # of another teacher, or other filters or data
            if other != unfinished:
                shutil.rmtree(other, ignore_errors=True)
        unfinished.mkdir(parents=True, exist_ok=True)
        return written(unfinished)

    done = world.on_main(prepare)
    size = build.recipe.evaluation.micro_batch_size
    # the longest first: what does not fit into memory shows at once
    by_length = sorted(plan.samples, key=lambda sample: (-len(sample.input_ids), sample.index))
    shares = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    shares = [share for share in shares if not done.issuperset(sample.index for sample in share)]
    rounds = -(-len(shares) // world.size)  # as many on every rank, which a sharded teacher needs
    part = f"{secrets.token_hex(4)}_{world.rank:05d}"
    bank, writer = world.agree(
        lambda: (teacher_bank(build, filters), PartWriter(unfinished, part, plan.record)),
    )
    frozen = build.models.frozen("teacher", teacher, build.layers("teacher"))
    vet(frozen)
    if not plan.record.num_outputs:
        build.models.drop_beyond_taps(frozen)
    build.screen.start("teacher cache", rounds)
    build.stops.has_work(True)
    started = time.monotonic()
    try:
        for number in range(rounds):
            build.stop_if_asked()
            mine = number * world.size + world.rank
            share = shares[mine] if mine < len(shares) else []
            answers = _ask(build, frozen, bank, share, with_predictions=plan.record.num_outputs > 0)
            with world.together():  # a disk may be full
                for sample, (outputs, states) in zip(share, answers, strict=True):
                    tokens = 1 if plan.of_texts else len(sample.input_ids)
                    writer.add(sample.index, outputs, states, tokens=tokens)
            if (number + 1) % -(-rounds // NUM_REPORTS) == 0:
                elapsed = time.monotonic() - started
                build.screen.update(number + 1, {}, remaining_s=elapsed / (number + 1) * (rounds - number - 1))
    except StopNow:  # every rank is here
        with world.together():
            writer.close()
        raise
    finally:
        build.screen.stop()
        frozen.release()
    with world.together():
        writer.close()
    del frozen
    collect_garbage()
    world.on_main(lambda: finish(unfinished, place, plan.record, about=about))


def _ask(
    build: Assembly, frozen: FrozenModel, bank: FilterBank | None, samples: list[Sample], *, with_predictions: bool
) -> list[tuple[Tensor | None, list[Tensor]]]:
    """What the teacher says of a microbatch's examples: predictions ``[outputs]``, and states ``[tokens, dim]``.

    Or a state of each text, ``[1, dim]``, where each model has a tokenizer of its own.
    """
    rows = build.recipe.evaluation.micro_batch_size
    collate, two = build.readers.of("teacher").collate, build.readers.are_two
    batch = collate([*samples, *[None] * (rows - len(samples))]).to(build.world.device)
    pooling = read_at(build, frozen.tapped).of(batch) if two else None
    states: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def keep_state(place: int, state: Tensor) -> None:
        assert bank is not None
        own: Any = bank.filters[place]
        states[place] = own(state) if pooling is None else own.of_texts(state, pooling)

    def keep_outputs(predictions: Predictions | None) -> None:
        if predictions is not None:
            outputs.append(predictions.outputs(batch))

    frozen.teach(
        batch,
        keep_outputs,
        with_predictions=with_predictions,
        on_state=keep_state if bank is not None else None,
    )
    return [
        (
            outputs[0][row] if outputs else None,
            [states[place][row] if two else states[place][row][batch.kept_tokens[row]] for place in sorted(states)],
        )
        for row in range(len(samples))
    ]
