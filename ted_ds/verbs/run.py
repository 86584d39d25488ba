"""The verb ``run``, and those that do a part of it: the phases that are pending, then the results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from ted_ds.assembly.assembly import Assembly
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.bad_records import Ledger
from ted_ds.errors import ConfigError, StoppedOnRequest
from ted_ds.launching.records import log_file
from ted_ds.output.chatter import LOGS, chatter_kept_in
from ted_ds.output.run_folder import begin_run, mark_stopped
from ted_ds.output.run_folders import RunFolders
from ted_ds.output.screen import Screen, duration
from ted_ds.output.trackers.backend import TrackedRun
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE
from ted_ds.output.tracking import Tracker, backends_of
from ted_ds.phases.chain import Chain
from ted_ds.phases.evaluate import read_results, results_file
from ted_ds.phases.journal import Journal
from ted_ds.planning.phase import EXPORT, Phase
from ted_ds.runtime.preemption import StopRequests, shielded
from ted_ds.runtime.world import World
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.next_commands import next_commands
from ted_ds.verbs.prepare import greet, hearing, prepare


def run_phases(recipe_path: str, overrides: Sequence[str], wanted: Sequence[Phase]) -> None:
    """Run the wanted phases of a recipe on the ranks the launcher started.

    Raises:
        TedError: The same on every rank. Before the first phase starts nothing has been written.
        RankLostError: On the ranks that are left, when one of them died or hangs, and on one whose GPU failed.
    """
    started = time.monotonic()
    stops = StopRequests()
    with hearing(stops), contextlib.ExitStack() as held:
        _run_phases(recipe_path, overrides, wanted, stops, started, held)


def _run_phases(
    recipe_path: str,
    overrides: Sequence[str],
    wanted: Sequence[Phase],
    stops: StopRequests,
    started: float,
    held: contextlib.ExitStack,
) -> None:
    assembly, inputs = prepare(recipe_path, overrides, contracts_hold=True, stops=stops, held=held)
    recipe, world, screen = assembly.recipe, assembly.world, assembly.screen
    journal = Journal(world)
    chain = Chain(assembly, inputs, journal)
    stops.limit(recipe.stop_after_minutes, started_at=started)
    greet(assembly)
    phases = chain.pending(wanted)
    try:
        if phases:
            chain.announce(phases)
            chain.vet_files()
            _open_output(recipe, world, assembly, journal)
            held.enter_context(chatter_kept_in(log_file(recipe.output_dir / LOGS, world.rank)))
            chain.run(phases)
        if world.is_main:
            _show_results(screen, recipe, inputs.folders, journal.tracker, time.monotonic() - started)
            if len(chain.took_s) > 1:
                screen.say(f"phases      {_ticked(chain.took_s, screen.tick)}")
            for what, command in next_commands(recipe, [recipe_path, *overrides]):
                screen.say(f"{what:11} {command}")
    except StoppedOnRequest as stop:
        _leave_stopped(assembly, journal, stop)
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
            ledger = Ledger(recipe.output_dir)
            journal.keep_bad_records(ledger)
            ledger.add(assembly.data.bad_records)
    with world.together():
        if not recipe.output_dir.is_dir():
            raise ConfigError(
                f"output_dir: {recipe.output_dir} was created by rank 0 and is not seen here; it must be on a file "
                "system that all nodes share"
            )


def _ticked(took_s: Mapping[str, float | None], tick: str) -> str:
    """A checklist of phases, those that this start of the run did with their times."""
    return "  ".join(f"{tick} {name}" + ("" if took is None else f" {duration(took)}") for name, took in took_s.items())


def _show_results(screen: Screen, recipe: Recipe, folders: RunFolders, tracker: Tracker | None, seconds: float) -> None:
    results = read_results(folders)
    if results is None:
        return
    metric = kind_of(recipe.task).headline
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
