"""A study's runs as lines for an array of batch jobs: what each changes, one line a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ted_ds.errors import ConfigError
from ted_ds.planning.phase import FINETUNE_TEACHER
from ted_ds.planning.study_arms import as_overrides
from ted_ds.planning.study_plan import plan_study
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.study.runs import Runs, StudyRun

TEACHERS_FILE, ARMS_FILE = "teachers.txt", "arms.txt"


def write_array(path: str, overrides: Sequence[str], folder: Path) -> None:
    """Write the lines of all runs that are not complete, and say how to submit them.

    Args:
        path: The recipe's file.
        overrides: Changes to it.
        folder: Gets ``teachers.txt``, where teachers are trained, and ``arms.txt``.

    Raises:
        ConfigError: The recipe, or an arm of the study, has mistakes; or the study cannot be an array.
    """
    plan = plan_study(path, overrides, kind_of)
    if plan.trials:
        raise ConfigError(
            f"{path}: study.search: settings are chosen in rounds, each by what the one before came to, so that they "
            "are no array; run the study without --array, or give the settings that were found in study.arms"
        )
    runs = Runs(plan, path, overrides)
    lines = {
        name: _lines(path, wanted) for name, wanted in ((TEACHERS_FILE, runs.teachers()), (ARMS_FILE, runs.of_arms()))
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in lines.items():
            (folder / name).write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--array {folder}: cannot be written: {error}") from error
    given = shlex.join([path, *overrides])
    if lines[TEACHERS_FILE]:
        print(_submission(folder / TEACHERS_FILE, len(lines[TEACHERS_FILE]), FINETUNE_TEACHER.verb, given))
    if lines[ARMS_FILE]:
        after = " --dependency=afterok:JOB" if lines[TEACHERS_FILE] else ""
        print(_submission(folder / ARMS_FILE, len(lines[ARMS_FILE]), "run", given, after))
    print(f"ted-ds study {given}")


def _lines(path: str, runs: Sequence[StudyRun]) -> list[str]:
    """What each run that is not complete changes."""
    found = []
    for run in runs:
        words = as_overrides(run.changes, spaced=False)
        broken = next((word for word in words if word.split() != [word]), None)
        if broken is not None:
            raise ConfigError(
                f"{path}: run {run.name} of the study: {broken}: a space cannot stand in the line of an array; use a "
                "value without one, or run the study without --array"
            )
        if not run.is_complete():
            found.append(" ".join(words))
    return found


def _submission(file: Path, count: int, verb: str, given: str, more: str = "") -> str:
    words = f"TED_DS_STUDY={shlex.quote(str(file))} sbatch --array=1-{count}{more}"
    return f"{words} launchers/slurm.sbatch {verb} {given}"
