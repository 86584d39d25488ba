"""The training of one phase, from wherever it was left: its data, reports, scores, checkpoints and stops."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.reading.records import BadRecord
from ted_ds.data.stream.state_file import STREAM_FILE, read_stream_state, stream_state_text
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folder import note_start
from ted_ds.phases.callbacks import CheckpointEvent, EvaluateEvent, ReportEvent, StepEvent, unchangeable
from ted_ds.phases.checkpoints import checkpoints_of
from ted_ds.phases.loop import Progress, Rhythm, train
from ted_ds.phases.pace import OfRank, Pace
from ted_ds.phases.stragglers import Stragglers, note_own_work
from ted_ds.phases.work import Kit
from ted_ds.planning.phase import phase_named
from ted_ds.runtime.checkpoints.taking_up import Saved
from ted_ds.runtime.determinism import random_state, restore_random_state, seed_everything
from ted_ds.runtime.gradient_norms import MeasuredTerms
from ted_ds.runtime.outputs import Outputs
from ted_ds.runtime.peak_memory import peak_gib
from ted_ds.runtime.preemption import StopNow, shielded
from ted_ds.runtime.step_runner import Objective, StepRunner

BALANCE = "balance"
"""The entry of a checkpoint's state with what weighs terms by their gradients."""
KEPT = "kept"
"""The entry of a checkpoint's state with what a phase had kept beside its training."""


def beats(value: float, best: float | None, *, higher_is_better: bool) -> bool:
    """Whether a score is better than the best before it, None for none: of equal ones, the first stays."""
    if not math.isfinite(value) or best is None:
        return math.isfinite(value)
    return value > best if higher_is_better else value < best


class PhaseTraining:
    """Trains one phase. Every rank must call everything."""

    def __init__(
        self,
        kit: Kit,
        folder: PhaseFolder,
        engine: StepRunner,
        plan: PhasePlan,
        *,
        forward: Outputs,
        outputs: Sequence[str] = (),
        kept: Any = None,
    ) -> None:
        """Prepare, and load the newest checkpoint if there is one.

        Args:
            kit: The run's.
            folder: The phase's.
            engine: What trains, new.
            plan: How.
            forward: What to score of a held-out batch (:mod:`ted_ds.runtime.outputs`).
            outputs: Their names where there are several, which are then scored at the end in any case.
            kept: What its checkpoints keep beside, as JSON.

        Raises:
            CheckpointError: The newest checkpoint is of other settings or another run; on every rank.
        """
        build = kit.build
        self._build, self._journal, self._listeners = build, kit.journal, kit.listeners
        self._phase, self._engine, self._plan = folder.path.name, engine, plan
        self._sides = build.sides_of(self._phase)
        self._forward, self._outputs, self._kept = forward, outputs, kept
        self._pace = Pace.of(build.recipe, build.plan, phase_named(self._phase))
        self._stragglers = Stragglers(build.world.hosts, build.world.num_stages)
        self._progress = Progress()
        self._balance: MeasuredTerms | None = None
        self._balanced: dict[str, Any] | None = None
        self.scores: list[dict[str, float]] = []
        """The held-out metrics of each output, when they were last computed."""
        self._best: dict[str, Any] | None = None
        seed_everything(build.recipe.seed, phase=self._phase, rank=build.world.rank)
        self._checkpoints = checkpoints_of(build, folder, self._tell_of_checkpoint)
        saved = self._checkpoints.newest()
        with shielded():
            self._batches = build.training_batches(
                plan,
                num_workers=build.recipe.data.workers,
                state=None if saved is None else read_stream_state(saved.folder),
                sides=self._sides,
            )
        found: list[BadRecord] = []
        if saved is not None:
            found = self._go_on(saved)
        if self._journal.ledger is not None:
            self._journal.ledger.begin_phase(found)
        self._journal.rewind(self._phase, self._progress.step, self._progress.evaluated)
        self._saved_step, self._saved_at = self._progress.step, time.monotonic()
        self._started, self._first_step = time.monotonic(), self._progress.step

    def run(self, objective: Objective) -> dict[str, Any]:
        """Train to the end; returns the last report, tokens per second, and which step scored best.

        With ``export: best`` the engine then has the weights of that step.

        Raises:
            StoppedOnRequest: A rank was asked to stop; everything is saved.
            TedError: It cannot go on; on every rank.
        """
        build, self._balance = self._build, objective.balance
        if self._balance is not None and self._balanced is not None:
            self._balance.load(self._balanced)
        build.screen.start(self._phase, self._plan.steps)
        try:
            tokens_per_s = train(
                self._engine,
                self._batches,
                objective,
                self,
                progress=self._progress,
                rhythm=Rhythm(
                    self._plan.steps,
                    log_every_steps=build.recipe.tracking.log_every_steps,
                    evaluate_every_steps=build.recipe.evaluation.every_steps,
                    evaluate_last=bool(self._outputs) or self._takes_best,
                    max_consecutive_skips=build.recipe.max_consecutive_skips,
                    watched=build.recipe.tracking.compare_with_teacher,
                ),
            )
            self._checkpoints.finish()
            self._checkpoints.settle_uploads()
            if self._takes_best:
                self._take_best()
        finally:
            build.screen.stop()
            self._batches.close()
        speed = {"perf/tokens_per_s": tokens_per_s} if tokens_per_s else {}
        return {**self._progress.report, **speed, **({"best": self._best} if self._best else {})}

    @property
    def _takes_best(self) -> bool:
        """Whether the phase leaves the model that scored best; filters, which are several outputs, are the last."""
        return self._build.recipe.export == "best" and not self._outputs

    def _take_best(self) -> None:
        """Give the engine the weights that scored best.

        Raises:
            CheckpointError: Their checkpoint is missing or damaged; on every rank.
        """
        if self._best is None:
            self.say(f"  WARN {self._phase}: no held-out score was finite; the last model is taken (export: best)")
            return
        step, metric, value = (self._best[key] for key in ("step", "metric", "value"))
        if step != self._progress.step:
            self._checkpoints.load(self._engine, self._checkpoints.after(step))
        self.say(f"  {self._phase}: the model of step {step} is taken, held-out {metric}: {value:.4g} (export: best)")

    # --- what the loop asks for -------------------------------------------------------------------------------------

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a report down, with what the data and the machine say."""
        whole = {**values, **self._look_around()}
        self._progress.report = whole
        self._journal.track(self._phase, step, whole)
        elapsed = time.monotonic() - self._started
        remaining_s = elapsed / max(step - self._first_step, 1) * (self._plan.steps - step)
        self._build.screen.update(step, whole, remaining_s=remaining_s)
        self._listeners.tell(
            ReportEvent(phase=self._phase, step=step, num_steps=self._plan.steps, values=unchangeable(whole))
        )

    def stepped(self, step: int, skipped: str | None) -> None:
        """Let it be known that a step is behind."""
        self._listeners.tell(StepEvent(phase=self._phase, step=step, num_steps=self._plan.steps, skipped=skipped))

    def _tell_of_checkpoint(self, step: int, folder: Path) -> None:
        self._listeners.tell(CheckpointEvent(phase=self._phase, step=step, folder=folder))

    def say(self, text: str) -> None:
        """Print a line."""
        self._build.screen.say(text)

    def evaluate(self, progress: Progress) -> None:
        """Score the held-out data, and remember the best."""
        build = self._build
        try:
            self.scores, _ = build.evaluate(self._forward, in_pipeline=True, sides=self._sides)
        except StopNow:
            self._stop(progress)
        for name, metrics in zip(self._outputs, self.scores, strict=False):
            shown = "  ".join(f"{metric} {value:.4g}" for metric, value in metrics.items() if "num_" not in metric)
            build.screen.say(f"  {self._phase}, {name}: {shown}")
        headline, best_is_highest = build.kind.headline, build.kind.higher_is_better
        value = sum(metrics[headline] for metrics in self.scores) / len(self.scores)
        if not self._outputs:
            build.screen.say(f"  {self._phase} {progress.step}, held-out {headline}: {value:.4g}")
        if beats(value, None if self._best is None else self._best["value"], higher_is_better=best_is_highest):
            self._best = {"metric": headline, "value": value, "step": progress.step}
        pairs = zip([f"/{name}" for name in self._outputs] or [""], self.scores, strict=True)
        scores = {f"eval/{metric}{name}": v for name, metrics in pairs for metric, v in metrics.items()}
        self._journal.track(self._phase, progress.step, scores)
        names = self._outputs or [phase_named(self._phase).trains or self._phase]
        self._listeners.tell(
            EvaluateEvent(
                phase=self._phase,
                step=progress.step,
                scores=unchangeable(dict(zip(names, self.scores, strict=True))),
                headline=headline,
                higher_is_better=best_is_highest,
            )
        )

    def between_steps(self, progress: Progress) -> None:
        """Finish what is written, save what is due, stop if any rank was asked to."""
        build = self._build
        build.stops.has_work(True)
        asked = build.stops.reason is not None
        due = build.world.is_main and self._is_due(progress)  # one clock decides
        stop, save, *signs = build.world.highest(asked, due, *self._checkpoints.signs)
        self._checkpoints.advance(*signs)
        if stop:
            build.stops.agreed()
            self._stop(progress)
        if save and not self._engine.weights_are_finite():  # it would push out a better one
            self.say(f"  WARN the weights after step {progress.step} are not finite; they are not saved")
        elif save:
            self._begin_save(progress)
            if not build.recipe.checkpoint.asynchronous:
                self._checkpoints.finish()

    def save(self, progress: Progress) -> Path:
        """Save, unless that is done, and wait until it is on the disk, and at the store if there is one."""
        if progress.step != self._saved_step:
            self._begin_save(progress)
        self._checkpoints.finish()
        self._checkpoints.settle_uploads()
        return self._checkpoints.folders.path(progress.step)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _is_due(self, progress: Progress) -> bool:
        settings = self._build.recipe.checkpoint
        if progress.step == self._saved_step or progress.last_taken < progress.step:
            return False
        by_steps = settings.every_steps is not None and progress.step % settings.every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = settings.every_minutes is not None and minutes >= settings.every_minutes
        is_best = settings.keep_best and self._best is not None and self._best["step"] == progress.step
        return by_steps or by_time or is_best

    def _stop(self, progress: Progress) -> NoReturn:
        where = f"after step {progress.step} of {self._phase}"
        if progress.step == 0:
            raise self._build.stopped(f"before the first step of {self._phase}", "There was nothing to save")
        if progress.step != self._saved_step and not self._engine.weights_are_finite():
            self._checkpoints.finish()
            raise self._build.stopped(where, "The weights are not finite and were not saved; checkpoints before stay")
        started = time.monotonic()
        place = self.save(progress)
        missing = self._checkpoints.not_stored
        also = "" if missing is None else f", but not at the store ({missing})"
        raise self._build.stopped(where, f"The state is in {place}{also}, saved in {time.monotonic() - started:.1f} s")

    def _begin_save(self, progress: Progress) -> None:
        world, ledger = self._build.world, self._journal.ledger
        # where one rank could not make its next step, others may be one ahead
        parts = world.gather((self._batches.state_dict(progress.step), self._batches.take_bad_records()))

        def take_note() -> list[BadRecord]:
            if ledger is None:
                return []
            ledger.add(record for _, of_rank in parts for record in of_rank)
            return ledger.of_phase()

        bad_records = world.on_main(take_note)
        self._checkpoints.begin(
            self._engine,
            progress.step,
            state={
                "phase": self._phase,
                "run_id": self._build.run.run_id,
                "progress": asdict(progress),
                "scores": self.scores,
                "best": self._best,
                "bad_records": bad_records,
                BALANCE: None if self._balance is None else self._balance.state(),
                KEPT: self._kept,
            },
            of_rank={"random": random_state(), "unreported": self._engine.unreported()},
            texts={STREAM_FILE: stream_state_text([state for state, _ in parts if state is not None])},
            best=self._best["step"] if self._best else None,
        )
        self._saved_step, self._saved_at = progress.step, time.monotonic()

    def _go_on(self, saved: Saved) -> list[BadRecord]:
        """Take up a checkpoint; returns the bad records its phase had met."""
        world, state = self._build.world, saved.state
        self._progress = Progress(**state["progress"])
        self._best, self.scores = state["best"], state["scores"]
        self._balanced = state.get(BALANCE)  # older ones have none
        self._checkpoints.load(self._engine, saved)
        self._engine.go_on_reporting([one["unreported"] for one in saved.of_ranks])
        if len(saved.of_ranks) == world.size:
            restore_random_state(saved.of_ranks[world.rank]["random"])
        else:  # nobody's dropout goes on; the data does
            seed_everything(self._build.recipe.seed, phase=f"{self._phase} {saved.step}", rank=world.rank)
        note = {"phase": self._phase, "after_step": saved.step}
        world.on_main(lambda: note_start(self._build.recipe.output_dir, note))
        self._build.screen.say(f"  going on after step {saved.step} of {self._plan.steps}, from {saved.folder}")
        return [BadRecord(*record) for record in state["bad_records"]]

    # --- data -------------------------------------------------------------------------------------------------------

    def _look_around(self) -> dict[str, float]:
        """What all ranks have read so far, and what they took for it; records that were skipped are listed.

        Raises:
            DataError: They are too many; on every rank.
        """
        own = OfRank(self._engine.clock.take(), peak_gib(self._build.world.device))
        parts = self._build.world.gather((self._batches.progress(), self._batches.take_bad_records(), own))
        totals: dict[str, float] = {}
        for numbers, *_ in parts:
            for name, value in numbers.items():
                totals[name] = totals.get(name, 0) + value
        bad = [record for _, of_rank, _ in parts for record in of_rank]
        num_read = int(sum(value for name, value in totals.items() if name.endswith("/records")))
        of_ranks = [of_rank for *_, of_rank in parts]

        def write_down() -> None:
            note_own_work(self._build.recipe.output_dir, self._phase, self._progress.step, of_ranks)
            self._journal.list_bad_records(bad, num_read, self._build.recipe.data.bad_records)

        self._build.world.on_main(write_down)
        slowest, waited_for = self._stragglers.take(of_ranks)
        if waited_for is not None:
            self.say(f"  WARN {waited_for}")
        return {**totals, **self._pace.metrics(of_ranks), **slowest}
