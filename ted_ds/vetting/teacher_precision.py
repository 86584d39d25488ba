"""``teacher.precision: auto``: in how many bits this run's teacher is, by what was measured as it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.given import Given
from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError, ConfigError, TedError, TopologyError
from ted_ds.models.loading import DTYPES
from ted_ds.models.quantised import has_torchao, refuse_without_torchao
from ted_ds.output.run_folder import RUN_FILE
from ted_ds.planning.hosting import HOSTS, USABLE, Hosting
from ted_ds.planning.memory import frozen_bytes, gib
from ted_ds.planning.phase_memory import with_head
from ted_ds.runtime.free_memory import free_device_bytes
from ted_ds.runtime.world import World
from ted_ds.vetting.precision import Way, bias, heldout_batches, load, seconds_of

ROUNDS = 5
"""Of forward passes over all examples, in turns with the recipe's precision; the median counts."""
WORTH_IT = 0.95
"""Of the time in the recipe's precision: what takes more is no faster within what clocks can tell."""


@dataclass(frozen=True)
class Measured:
    """A way to have the teacher, beside that of the recipe."""

    precision: str
    host: str
    kl: float
    """Nats a prediction, on average over all ranks' examples."""
    of_time: float
    """What forward passes take beside those in the recipe's precision, on the slowest rank."""

    @property
    def way(self) -> Way:
        """Which it is."""
        return Way(self.precision, self.host)


def find_precision(given: Given, *, teacher_sha256: Callable[[], str], run_is_old: bool, may_measure: bool) -> Assembly:
    """Build for what is given, with a teacher in as many bits as the recipe lets this run find out.

    A run that is started again keeps what it took, unless that was found for another recipe: then it is measured anew,
    and phases that were completed with another teacher refuse it. Every rank must call it.

    Args:
        given: With the host of a teacher in the recipe's precision.
        teacher_sha256: What names the teacher's files; asked on rank 0.
        run_is_old: Whether phases may be complete whose teacher was in that precision.
        may_measure: Whether the models are known to fit the data; else an unsettled run has the recipe's precision.

    Raises:
        TedError: There is nothing to measure it on, or what was kept is damaged, or needs what is not here; on every
            rank.
    """
    recipe, kept = given.recipe, given.run.teacher_precision
    if recipe.teacher.precision is None:
        return Assembly(replace(given, run=replace(given.run, teacher_precision=None)))
    if kept is not None:
        _refuse_strange(recipe, kept)

    def decided_by() -> dict[str, Any]:
        bound = {"beside": recipe.precision, "max_kl": recipe.teacher.precision_max_kl}
        return {**bound, "teacher": given.world.on_main(teacher_sha256)}

    # of a run from before the teacher was kept, too, nothing is said of it
    holds = kept is not None and all(kept.get(name, value) == value for name, value in decided_by().items())
    if not holds and not may_measure:
        return Assembly(given)
    if kept is not None and holds:
        way = Way(kept["precision"], kept["host"])
        _refuse_without(given.world, recipe, way)
        why = f"{way.words}, as when this run began"
    else:
        found, why = _find(Assembly(given), run_is_old=run_is_old and kept is None)
        kept = found | decided_by()
    hosting = given.hosting
    if kept["host"] == "int8" or kept["precision"] != recipe.precision:
        host = "int8" if kept["host"] == "int8" else hosting.host
        hosting = Hosting(host, f"{hosting.why} (reckoned in {recipe.precision})", kept["precision"])
    run = replace(given.run, teacher_precision=kept)
    return Assembly(replace(given, run=run, hosting=replace(hosting, precision_why=why)))


def _find(build: Assembly, *, run_is_old: bool) -> tuple[dict[str, Any], str]:
    """What to keep of this decision, and how it came about in words; the same on every rank."""
    recipe, host = build.recipe, build.hosting.host
    own, measured, reason = Way(recipe.precision, "replica"), list[Measured](), None
    if run_is_old:
        reason = "the run began without it"
    elif host != "replica":
        reason = f"the teacher is {host}, and is measured only where it is whole on each rank"
    else:
        reason = _no_room(build)
    if reason is None:
        measured = measure(build, Path(recipe.teacher.path))
    taken = choose(measured, own, recipe.teacher.precision_max_kl)
    why = reason or in_words(measured, recipe.teacher.precision_max_kl)
    kept: dict[str, Any] = {
        "precision": taken.precision,
        "host": host if taken == own else taken.host,
        "measured": [asdict(one) for one in measured],
    }
    # ranks of another machine may find other times, but act on one choice
    return build.world.gather((kept, f"{taken.words} ({why})"))[0]


def ways_beside(precision: str, *, has_bf16: bool, has_int8: bool) -> list[Way]:
    """The ways to have a teacher in fewer bits than a precision: in 16, and its blocks' matrices in 8."""
    fewer = "bf16" if precision == "fp32" and has_bf16 else precision
    ways = [Way(fewer, "replica")] if fewer != precision else []
    return [*ways, Way(fewer, "int8")] if has_int8 else ways


@torch.no_grad()
def measure(build: Assembly, path: Path) -> list[Measured]:
    """Each of these ways beside the recipe's own precision, on held-out examples. Every rank must call it.

    Raises:
        ConfigError: No example is held out; on every rank.
    """
    recipe, world = build.recipe, build.world
    if not build.readers.of("teacher").data.heldout:
        error = ConfigError(
            "teacher.precision: auto: no example is held out to measure it on; give data.validation or "
            "data.heldout_fraction, or remove it"
        )
        error.agreed = True
        raise error
    has_int8 = "int8" not in build.teacher_facts.family.refused and all(world.gather(has_torchao()))
    has_bf16 = all(world.gather(_computes_in_bf16(world)))
    batches = heldout_batches(build)
    reference = load(build, path, Way(recipe.precision, "replica"))
    found = []
    for way in ways_beside(recipe.precision, has_bf16=has_bf16, has_int8=has_int8):
        model = load(build, path, way)
        kl = bias(build, reference, model, batches)
        ratios = []
        for number in range(ROUNDS + 1):  # the first of them warms up
            own, other = (seconds_of(one, batches) for one in (reference, model))
            ratios += [other / own] if number else []
        found.append(Measured(way.precision, way.host, kl, max(world.gather(median(ratios)))))
        model.release()
    reference.release()
    return found


def choose(measured: Sequence[Measured], own: Way, max_kl: float) -> Way:
    """The fastest of the ways that are near enough; the recipe's ``own`` where none of them is, or none is faster."""
    near = [one for one in measured if one.kl <= max_kl and one.of_time <= WORTH_IT]  # a KL that is NaN is not
    return min(near, key=lambda one: one.of_time).way if near else own


def in_words(measured: Sequence[Measured], max_kl: float) -> str:
    """All that was measured."""
    if not measured:
        return "there is no other way to have it: 8 bits need torchao, and a model it was shown to work with"
    told = [
        f"{one.way.words} is off by a KL of {one.kl:.2g} and takes {one.of_time:.2f} of the time" for one in measured
    ]
    return f"{'; '.join(told)}; at most {max_kl:g} nats a prediction, and {WORTH_IT:g} of the time"


def _computes_in_bf16(world: World) -> bool:
    try:
        world.check_precision("bf16")
    except TopologyError:
        return False
    return True


def _no_room(build: Assembly) -> str | None:
    """Why nothing can be measured here; None where it can."""
    recipe = build.recipe
    of_teacher = with_head(recipe, build.teacher_facts)
    whole = frozen_bytes(of_teacher, host="replica", precision=recipe.precision, world_size=build.world.size)
    free = free_device_bytes(build.world)
    if 2 * whole <= USABLE * free:
        return None
    return f"not measured: {gib(whole)} and a copy do not fit into {gib(free)} free per rank"


def _refuse_without(world: World, recipe: Recipe, way: Way) -> None:
    """Whether this machine has what a teacher that was chosen on another one needs."""
    with world.together():
        try:
            if way.host == "int8":
                refuse_without_torchao()
            if way.precision != recipe.precision:
                world.check_precision(way.precision)
        except TedError as error:
            raise type(error)(
                f"teacher.precision: auto: this run began with its teacher in {way.words} "
                f"({recipe.output_dir / RUN_FILE}), and here: {error}; go on where it began, or "
                "choose another output_dir"
            ) from error


def _refuse_strange(recipe: Recipe, kept: Any) -> None:
    """What was kept may be damaged; the same on every rank."""
    if isinstance(kept, dict) and kept.get("precision") in DTYPES and kept.get("host") in HOSTS:
        return
    error = CheckpointError(
        f"{recipe.output_dir / RUN_FILE}: teacher_precision: {kept!r} names no precision and host; restore it, or "
        "choose another output_dir"
    )
    error.agreed = True
    raise error
