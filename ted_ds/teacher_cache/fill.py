"""Stage II's teacher from a cache, and how the ranks fill it together."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import teacher_bank
from ted_ds.data.samples import Sample
from ted_ds.errors import CheckpointError, ConfigError
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.runtime.teacher import Teacher
from ted_ds.teacher_cache.asking import Ask, Asker, OutputAsker, TokenAsker
from ted_ds.teacher_cache.cached import CachedTeacher
from ted_ds.teacher_cache.cached_tokens import CachedTokens
from ted_ds.teacher_cache.parts import NOTHING_LOST, Part, PartWriter, written
from ted_ds.teacher_cache.plan import CACHE_FOLDER, CachePlan, about_cache, place_of, plan_cache, unfinished
from ted_ds.teacher_cache.questions import Questions
from ted_ds.teacher_cache.store import REFILLED, Reader, finish, is_complete
from ted_ds.teacher_cache.token_record import TokenRecord

NUM_REPORTS = 10
"""Of how far it is filled."""
PART_BYTES = 2**28
"""What a rank writes before it counts: as much is asked again after a kill."""
PART_S = 300.0
"""Or how long it writes."""


def cached_teacher(
    build: Assembly,
    *,
    teacher: Path,
    filters: Path | None,
    depends_on: Mapping[str, Any],
    vet: Callable[[FrozenModel], None],
) -> Teacher | None:
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
    plan, world, side = plan_cache(build), build.world, build.recipe.data.padding.side
    if plan is None:
        return None
    about = about_cache(build, plan, depends_on)
    place = place_of(plan, about)
    if not world.on_main(lambda: is_complete(place)):
        _fill(build, plan, place, teacher=teacher, filters=filters, about=about, vet=vet)
    with world.together():
        if not is_complete(place):
            raise ConfigError(f"teacher.cache.dir: {place} was written by other ranks and is not seen here; share it")
    if isinstance(plan.record, TokenRecord):
        rows = plan.rows
        opened = functools.partial(Reader, place, plan.record) if rows is None else lambda: _open_whole(plan, place)
        cached = CachedTokens(
            world.agree(opened),
            dtype=build.dtype,
            temperature=build.recipe.distill.temperature,
            of_rows=None if rows is None else rows.wanted.rows,
            ahead=plan.ahead,
        )
        build.screen.say(f"teacher cache: {place}: {cached.in_words}")
        return cached
    reader = world.agree(functools.partial(_open_whole, plan, place))
    return CachedTeacher(reader, dtype=build.dtype, side=side, of_texts=plan.of_texts)


def _open_whole(plan: CachePlan, place: Path) -> Reader[Any]:
    reader = Reader(place, plan.record)
    if len(reader) != plan.num_examples:
        raise CheckpointError(f"{place}: the teacher's cache lacks examples; {REFILLED}")
    return reader


def retire_cache(build: Assembly) -> None:
    """Remove this run's own cache; of one in a folder that runs share, what is unfinished. On one rank only."""
    settings = build.recipe.teacher.cache
    if settings is None:
        return
    own = build.recipe.output_dir / CACHE_FOLDER
    for folder in [own] if settings.dir is None else unfinished(build, settings.dir):
        shutil.rmtree(folder, ignore_errors=True)


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
    world, begun = build.world, place.with_name(f".{place.name}.{build.run.run_id}")

    def prepare() -> None:
        for other in (build.recipe.output_dir / CACHE_FOLDER).glob("*"):  # of another teacher, or other filters or data
            if other != begun:
                shutil.rmtree(other, ignore_errors=True)
        begun.mkdir(parents=True, exist_ok=True)

    world.on_main(prepare)
    done: list[Part] = world.on_main(lambda: written(begun, build.screen.say))
    if plan.rows is None:
        own = _write(build, plan, begun, done, teacher=teacher, filters=filters, vet=vet)
    else:
        own = _copy(build, plan, begun, done)
    collect_garbage()
    counts = {lane: count for of_rank in world.gather(own) for lane, count in of_rank.items()}
    in_order = [counts[lane] for lane in sorted(counts)]
    world.on_main(lambda: finish(begun, place, plan.record, about=about, counts=in_order))


def _copy(build: Assembly, plan: CachePlan, begun: Path, done: Sequence[Part]) -> Mapping[int, int]:
    """Write what rows of the data hold and is left into the folder that was begun; returns how many each lane has."""
    world = build.world
    reader: Any = world.agree(lambda: plan.ask(done))  # both questions and answers
    (rounds,) = world.highest(reader.rounds)
    _ask_all(build, reader, reader, _Parts(begun, world.rank, reader, reader), rounds)
    return reader.counts


@torch.no_grad()
def _write(
    build: Assembly,
    plan: CachePlan,
    begun: Path,
    done: Sequence[Part],
    *,
    teacher: Path,
    filters: Path | None,
    vet: Callable[[FrozenModel], None],
) -> Mapping[int, int]:
    """Write what is left into the folder that was begun; returns how many samples each of this rank's lanes has."""
    world = build.world
    bank, questions = world.agree(lambda: (teacher_bank(build, filters), plan.ask(done)))
    (rounds,) = world.highest(questions.rounds)  # as many on every rank, which a sharded teacher needs
    frozen = build.models.frozen("teacher", teacher, build.layers("teacher"))
    vet(frozen)
    asker = Asker(build, frozen, bank)
    ask: Ask
    if isinstance(plan.record, TokenRecord):
        asks_predictions = plan.record.num_kept > 0
        ask = TokenAsker(asker, plan.record, build.terms, temperature=build.recipe.distill.temperature)
    else:
        asks_predictions = plan.record.num_outputs > 0
        ask = OutputAsker(asker, plan.record, of_texts=plan.of_texts)
    if not asks_predictions:
        build.models.drop_beyond_taps(frozen)
    try:
        _ask_all(build, questions, ask, _Parts(begun, world.rank, questions, ask), rounds)
    finally:
        questions.close()
        frozen.release()
    return questions.counts


class _Parts:
    """What this rank writes: a part after the other, each of which counts once it is whole."""

    def __init__(self, folder: Path, rank: int, questions: Questions, ask: Ask) -> None:
        self._folder, self._rank, self._questions, self._ask = folder, rank, questions, ask
        self._is_first = True
        self._open: PartWriter | None = None
        self._since = 0.0

    def add(self, sample: Sample, record: bytes) -> None:
        """Write a record down."""
        if self._open is None:
            self._open, self._since = PartWriter(self._folder, self._rank), time.monotonic()
        self._open.add(sample.index, record, tokens=len(sample.input_ids))

    def close_if_due(self) -> None:
        """Let what is written count, if it is much."""
        part = self._open
        if part is not None and (part.num_bytes >= PART_BYTES or time.monotonic() - self._since >= PART_S):
            self.close()

    def close(self) -> None:
        """Let what is written count."""
        if self._open is not None:
            self._open.close(self._questions.left(), self._ask.lost if self._is_first else NOTHING_LOST)
            self._open, self._is_first = None, False


def _ask_all(build: Assembly, questions: Questions, ask: Ask, parts: _Parts, rounds: int) -> None:
    """Ask what is left, and write down what the teacher says.

    Raises:
        StopNow: Any rank was asked to stop; what is written counts.
    """
    build.screen.start("teacher cache", rounds)
    build.stops.has_work(True)
    try:
        _ask_each(build, questions, ask, parts, rounds)
    finally:
        build.screen.stop()


def _ask_each(build: Assembly, questions: Questions, ask: Ask, parts: _Parts, rounds: int) -> None:
    world, started = build.world, time.monotonic()
    for number in range(rounds):
        try:
            build.stop_if_asked()
        except StopNow:  # every rank is here
            with world.together():
                parts.close()
            raise
        share = world.agree(questions.next)
        answers = ask(share)
        with world.together():  # a disk may be full
            for sample, record in zip(share, answers, strict=True):
                parts.add(sample, record)
            parts.close_if_due()
        if (number + 1) % -(-rounds // NUM_REPORTS) == 0:
            elapsed = time.monotonic() - started
            build.screen.update(number + 1, {}, remaining_s=elapsed / (number + 1) * (rounds - number - 1))
    with world.together():
        parts.close()
