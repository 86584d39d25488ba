"""Conduct a study: start what is not complete, and compare what is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ted_ds.errors import ConfigError, RankLostError, StoppedOnRequest, counted
from ted_ds.launching.side_by_side import Job, SideBySide
from ted_ds.output.output_lock import holding
from ted_ds.output.run_folder import forget_not_finite, was_not_finite
from ted_ds.output.screen import Screen
from ted_ds.planning.study_arms import as_overrides
from ted_ds.planning.study_plan import StudyPlan, plan_study, with_settings
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.study.report import Conducted, show, write
from ted_ds.verbs.study.runs import Runs, StudyRun
from ted_ds.verbs.study.scores import compare
from ted_ds.verbs.study.search import SearchRounds

GO_ON = (StoppedOnRequest.exit_code, RankLostError.exit_code)
"""Of runs that only have to be started again."""
MOST_LINES = 3
"""Of a log that are shown, from its end."""


def conduct(path: str, overrides: Sequence[str]) -> bool:
    """Run a study from wherever it was left, and show what it says; returns whether all of its runs are complete.

    Raises:
        ConfigError: The recipe, or an arm of the study, has mistakes; all of them, and nothing was written.
        StoppedOnRequest: It was asked to stop; the runs have saved what they had.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a study starts the ranks of its runs itself (study.ranks): start it without a launcher")
    plan = plan_study(path, overrides, kind_of)
    screen, output = Screen(shown=True), plan.recipe.output_dir
    _greet(plan, screen)
    with holding(output, say=screen.say):
        conductor = Conductor(plan, (path, overrides), screen)
        study = conductor.conduct()
        write(study, output)
        show(study, screen, output)
    return not study.failed


def _greet(plan: StudyPlan, screen: Screen) -> None:
    seeds = counted(len(plan.seeds), "seed")
    screen.say(
        f"{plan.recipe.name}: {counted(len(plan.arms), 'arm')} ({', '.join(plan.arms)}) over {seeds}, at equal "
        f"{plan.study.equal}; compared with {plan.baseline}"
    )


class Conductor:
    """Starts runs, and knows which failed."""

    def __init__(self, plan: StudyPlan, started_with: tuple[str, Sequence[str]], screen: Screen) -> None:
        """Take the plan, the recipe's file and the changes that the study was started with, and the screen."""
        self._plan, self._started_with, self._screen = plan, started_with, screen
        self._runs = Runs(plan, *started_with)
        self._side_by_side = SideBySide(plan.study.at_once, plan.study.ranks, screen.say)
        self._failed: dict[str, str] = {}
        self._undecided: set[str] = set()

    def conduct(self) -> Conducted:
        """Teachers first, then the search for settings, then all arms, seed by seed; returns what came of it.

        Raises:
            StoppedOnRequest: This process was asked to stop.
        """
        with self._side_by_side.listening():
            self._run_all(self._runs.teachers())
            search = self._search() if self._plan.trials else None
            self._run_all([run for run in self._runs.of_arms() if self._may_begin(run)])
        by_arm: dict[str, list[StudyRun]] = {}
        for run in self._runs.of_arms():
            assert run.arm is not None
            by_arm.setdefault(run.arm, []).append(run)
        complete = {name: found for name, found in by_arm.items() if all(run.is_complete() for run in found)}
        parts = compare(self._plan, self._runs, complete)
        return Conducted(self._plan, complete, self._failed, parts, {} if search is None else search.tried)

    def _search(self) -> SearchRounds:
        """Try settings, and take up the best of each arm.

        An arm without one is not begun: its recipe's own setting was not asked for.
        """
        rounds = SearchRounds(self._plan, self._runs)
        for round_of_runs in rounds:
            for run in round_of_runs:
                forget_not_finite(run.folder)
            codes = self._run_all([run for run in round_of_runs if self._may_begin(run)])
            for run in round_of_runs:
                if codes.get(run.name) in GO_ON:
                    assert run.arm is not None
                    self._undecided.add(run.arm)
                elif run.name in codes and was_not_finite(run.folder):
                    del self._failed[run.name]  # that it cannot be trained so is what the trial was to find out
                elif run.name in self._failed:  # of whatever else: nothing is known of this setting
                    assert run.arm is not None
                    self._undecided.add(run.arm)
            rounds.judge()
        chosen = {name: one.setting for name, one in rounds.chosen.items() if name not in self._undecided}
        self._undecided |= self._plan.arms.keys() - chosen.keys()
        for name, setting in chosen.items():
            self._screen.say(f"{name}: {', '.join(as_overrides(setting))} is taken, the best on held-out data")
        self._plan = with_settings(self._plan, {name: chosen.get(name, {}) for name in self._plan.arms})
        self._runs = Runs(self._plan, *self._started_with)
        return rounds

    def _may_begin(self, run: StudyRun) -> bool:
        """Whether the teacher that a run is to read is there, and its arm has a setting."""
        failed = next((one for one in run.needs if one in self._failed), None)
        if failed is not None:
            self._failed[run.name] = f"its teacher is not there: {failed} failed"
        elif run.arm in self._undecided:
            self._failed[run.name] = "its arm has no setting: no trial, or not all that have begun, are complete"
        return run.name not in self._failed

    def _run_all(self, wanted: Sequence[StudyRun]) -> dict[str, int]:
        """Run what is not complete; returns the exit codes of those that fail, by their names."""
        codes: dict[str, int] = {}
        by_name = {run.name: run for run in wanted if not run.is_complete()}
        skipped = len(wanted) - len(by_name)
        if skipped:
            self._screen.say(f"{skipped} of {counted(len(wanted), 'run')}: complete, skipped")
        left = len(by_name)

        def ended(job: Job, code: int, seconds: float) -> None:
            nonlocal left
            left -= 1
            if code == 0:
                by_name[job.name].mark_complete()
                self._screen.say(f"{job.name}: complete after {seconds:.0f} s; {left} to go")
            elif not self._side_by_side.is_asked:
                codes[job.name] = code
                again = "; start the study again" if code in GO_ON else ""
                self._failed[job.name] = f"exit code {code}, see {job.log}{again}"
                self._screen.say(f"WARN {job.name}: {self._failed[job.name]}:\n{_end_of(job.log)}")

        self._side_by_side.run([self._runs.job(run) for run in by_name.values()], ended)
        if self._side_by_side.is_asked:
            raise StoppedOnRequest(
                f"{self._plan.recipe.output_dir}: the study was stopped; its runs have saved what they had. Start the "
                "same command again to go on"
            )
        return codes


def _end_of(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-MOST_LINES:])
