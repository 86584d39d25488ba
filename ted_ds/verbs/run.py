"""The verb ``run``, and those that do a part of it: the phases that are pending, then the results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.own import NOTHING_OWN, Own
from ted_ds.config.given import AnyRecipe
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.bad_records import Ledger
from ted_ds.errors import ConfigError, NumericsError, StoppedOnRequest, StoreError
from ted_ds.launching.records import log_file
from ted_ds.output.chatter import LOGS, chatter_kept_in
from ted_ds.output.run_folder import begin_run, mark_not_finite, mark_stopped, note_start
from ted_ds.output.run_folders import RunFolders
from ted_ds.output.screen import Screen, duration
from ted_ds.output.trackers.backend import TrackedRun
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE
from ted_ds.output.tracking import Tracker, backends_of
from ted_ds.phases.callbacks import Callback, Listeners
from ted_ds.phases.chain import Chain
from ted_ds.phases.evaluate import read_results, results_file
from ted_ds.phases.journal import Journal
from ted_ds.planning.phase import DISTILL, EXPORT, PHASES, Phase
from ted_ds.runtime.host_allocator import keep_freed_memory
from ted_ds.runtime.preemption import StopRequests, shielded
from ted_ds.runtime.world import World
from ted_ds.verbs.next_commands import next_commands
from ted_ds.verbs.prepare import greet, hearing, prepare
from ted_ds.verbs.store_access import claim_store

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Order:
    """What is to be run."""

    recipe: AnyRecipe
    overrides: Sequence[str]
    """Changes to it."""
    wanted: Sequence[Phase]
    """Of which those that are complete are skipped."""
    callbacks: Sequence[Callback] | None = None
    """What hears of it on this rank; None where no rank has any."""
    own: Own = NOTHING_OWN
    fills_cache: bool = False
    """Whether the teacher's cache is filled behind them."""


def run_phases(recipe: AnyRecipe, overrides: Sequence[str], wanted: Sequence[Phase]) -> None:
    """Run the wanted phases of a recipe in a process that is there for this alone, as the command line's is.

    Raises:
        TedError: See :func:`run_order`.
        RankLostError: See there.
    """
    keep_freed_memory()
    run_order(Order(recipe, overrides, wanted), StopRequests(), _no_result)


def fill_cache(recipe: AnyRecipe, overrides: Sequence[str]) -> None:
    """Fill the teacher's cache of a recipe, after all phases before Stage II, likewise.

    Raises:
        TedError: See :func:`run_order`; or the recipe has no cache.
        RankLostError: See there.
    """
    keep_freed_memory()
    before = PHASES[: PHASES.index(DISTILL)]
    run_order(Order(recipe, overrides, before, fills_cache=True), StopRequests(), _no_result)


def _no_result(*_: object) -> None:
    """What the command line needs: all is on the screen."""


def run_order(order: Order, stops: StopRequests, conclude: Callable[[Assembly, RunFolders, float], Outcome]) -> Outcome:
    """Run what is ordered on the ranks the launcher started, or in this process alone.

    Args:
        order: What.
        stops: Takes requests to stop.
        conclude: What to make of it in the end, on rank 0, from the run's folders and the seconds it took.

    Returns:
        That; on every rank.

    Raises:
        TedError: The same on every rank. Before the first phase starts nothing has been written.
        RankLostError: On the ranks that are left, when one of them died or hangs, and on one whose GPU failed.
    """
    started = time.monotonic()
    with hearing(stops), contextlib.ExitStack() as held:
        return _run(order, stops, conclude, started, held)


def _run(
    order: Order,
    stops: StopRequests,
    conclude: Callable[[Assembly, RunFolders, float], Outcome],
    started: float,
    held: contextlib.ExitStack,
) -> Outcome:
    assembly, inputs = prepare(
        order.recipe, order.overrides, contracts_hold=True, stops=stops, held=held, own=order.own
    )
    recipe, world = assembly.recipe, assembly.world
    if order.fills_cache and recipe.teacher.cache is None:
        raise ConfigError("teacher.cache: this key is required to fill a cache; give it, with max_gib and a dir")
    journal = Journal(world)
    chain = Chain(assembly, inputs, journal, Listeners(world, stops, order.callbacks))
    stops.limit(recipe.stop_after_minutes, started_at=started)
    greet(assembly)
    phases = chain.pending(order.wanted)
    try:
        if phases or order.fills_cache:
            chain.announce([*phases, DISTILL] if order.fills_cache else phases)
            chain.vet_files()
            _open_output(recipe, world, assembly, journal)
            held.enter_context(chatter_kept_in(log_file(recipe.output_dir / LOGS, world.rank)))
            chain.run(phases)
            if order.fills_cache:
                chain.fill_cache()
        seconds = time.monotonic() - started
        if world.is_main:
            _show_results(assembly, inputs.folders, journal.tracker, seconds)
            _show_what_next(assembly.screen, recipe, order, chain.took_s)
        chain.finish_uploads()
        return world.on_main(lambda: conclude(assembly, inputs.folders, seconds))
    except StoppedOnRequest as stop:
        try:
            chain.finish_uploads()
        except StoreError as error:  # the run is to be started again in any case
            assembly.screen.say(f"WARN {error}")
        _leave_stopped(assembly, journal, stop)
        raise
    except NumericsError as error:
        if world.is_main:
            with contextlib.suppress(OSError):  # the error itself says it
                mark_not_finite(recipe.output_dir, str(error))
        raise
    finally:
        journal.close()


def _leave_stopped(assembly: Assembly, journal: Journal, stop: StoppedOnRequest) -> None:
    """Leave the sign for the launcher, and say how long it took; then all ranks exit together.

    (The first one out makes many a launcher kill the others.)
    """
    world, screen = assembly.world, assembly.screen
    seconds = max(one or 0.0 for one in world.gather(assembly.stops.seconds_since))
    about = {"message": str(stop), "exit_code": stop.exit_code, "seconds_from_request": round(seconds, 2)}
    if world.is_main:
        try:
            mark_stopped(assembly.recipe.output_dir, about)
        except OSError as error:  # what counts is saved
            screen.say(f"WARN {assembly.recipe.output_dir}: stopped.json cannot be written: {error}")
    journal.close()
    seconds = max(one or 0.0 for one in world.gather(assembly.stops.seconds_since))
    screen.say(f"stopped {seconds:.1f} s after the request")


def _open_output(recipe: Recipe, world: World, assembly: Assembly, journal: Journal) -> None:
    """Create the output folder with the journal in it, and make sure that every rank sees it."""
    with world.together():
        if world.is_main:
            with shielded():
                tracked = TrackedRun(
                    recipe.output_dir,
                    run_id=assembly.run.run_id,
                    name=recipe.name,
                    project=recipe.tracking.project,
                    config=without_secrets(recipe.model_dump(mode="json")),
                )
                journal.keep_numbers(Tracker(tracked, backends_of(recipe.tracking)))
            begin_run(recipe.output_dir, assembly.run)
            where = {"folder": str(Path.cwd()), "output_dir": str(recipe.output_dir)}
            note_start(recipe.output_dir, {"ranks": world.size, "hosts": len({*world.hosts}), **where})
            ledger = Ledger(recipe.output_dir)
            journal.keep_bad_records(ledger)
            ledger.add(assembly.data.bad_records)
    with world.together():
        if not recipe.output_dir.is_dir():
            raise ConfigError(
                f"output_dir: {recipe.output_dir} was created by rank 0 and is not seen here; it must be on a file "
                "system that all nodes share"
            )
    claim_store(recipe, world)


def _show_what_next(screen: Screen, recipe: Recipe, order: Order, took_s: Mapping[str, float | None]) -> None:
    if len(took_s) > 1:
        screen.say(f"phases      {_ticked(took_s, screen.tick)}")
    file = str(order.recipe) if isinstance(order.recipe, str | Path) else None
    for what, command in next_commands(recipe, None if file is None else [file, *order.overrides]):
        screen.say(f"{what:11} {command}")


def _ticked(took_s: Mapping[str, float | None], tick: str) -> str:
    """A checklist of phases, those that this start of the run did with their times."""
    return "  ".join(f"{tick} {name}" + ("" if took is None else f" {duration(took)}") for name, took in took_s.items())


def _show_results(assembly: Assembly, folders: RunFolders, tracker: Tracker | None, seconds: float) -> None:
    screen, recipe = assembly.screen, assembly.recipe
    results = read_results(folders)
    if results is None:
        return
    metric = assembly.kind.headline
    scores = {metric: f"held-out {metric}"} | {f"{part}/{metric}": f"{part} {metric}" for part in recipe.data.beside}
    rows = [
        (
            name,
            f"{values['num_parameters'] / 1e6:.1f} M",
            *(f"{values[one]:.4g}" for one in scores),
            f"{values['loss']:.4f}",
            f"{values['perf/tokens_per_s']:.0f}",
        )
        for name, values in results.items()
    ]
    columns = ("model", "parameters", *scores.values(), "loss", "tokens/s")
    screen.table(f"{recipe.name}: {recipe.distill.method}, {seconds / 60:.1f} min", columns, rows)
    output = recipe.output_dir
    screen.say(f"student     {folders.place(EXPORT)}")
    screen.say(f"evaluation  {results_file(folders)}")
    screen.say(f"metrics     {output / METRICS_FILE}")
    if tracker is not None:
        for title, place in tracker.places():
            screen.say(f"{title:11} {place}")
        tracker.summarise(
            {f"{name.replace(' ', '_')}/{one}": values[one] for name, values in results.items() for one in scores}
        )
