"""What a run came to, as it is handed to Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.output.run_folder import read_run
from ted_ds.output.run_folders import RunFolders
from ted_ds.planning.phase import EXPORT
from ted_ds.reports.reading import Finished, RunRecord, read_run_record

TOKENS, TOKENS_PER_S, PARAMETERS = "train/total_tokens", "perf/tokens_per_s", "num_parameters"


@dataclass(frozen=True)
class Scores:
    """How good one model is."""

    headline: float
    """The metric that models are compared by (:attr:`Result.headline`), on held-out data; NaN where it was not computed
    then, as by another scorer."""
    metrics: Mapping[str, float]
    """All of them, by name; those on other sets of data begin with the set's name."""
    num_parameters: int
    tokens_per_s: float
    """While it was scored, over all ranks."""


@dataclass(frozen=True)
class PhaseResult:
    """What a complete phase came to, in whichever start of the run it was done."""

    name: str
    folder: Path
    seconds: float
    """From when the process that completed it turned to it."""
    steps: int | None
    """Optimizer steps; None where nothing trains."""
    tokens: int | None
    """Learned from, over all ranks; likewise."""
    values: Mapping[str, Any]
    """Its last report."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    name: str
    output_dir: Path
    student: Path | None
    """The exported student, a plain folder of transformers; None where that phase was not asked for."""
    headline: str
    """The metric that models are compared by."""
    higher_is_better: bool
    scores: Mapping[str, Scores]
    """By model: ``teacher``, ``student before``, ``student after``, ...; none before the evaluation."""
    phases: Mapping[str, PhaseResult]
    """Those that are complete, in their order."""
    seconds: float
    """This call took."""

    @property
    def teacher_score(self) -> float | None:
        """The teacher's headline; None where it was not scored."""
        return self.scores[TEACHER].headline if TEACHER in self.scores else None

    @property
    def student_score(self) -> float | None:
        """The headline of the student that came out; likewise."""
        return self.scores[STUDENT].headline if STUDENT in self.scores else None

    @property
    def tokens(self) -> int:
        """Learned from in all phases."""
        return sum(phase.tokens or 0 for phase in self.phases.values())


def read_result(assembly: Assembly, folders: RunFolders, seconds: float) -> Result:
    """What the files of a run say, which this call took so many ``seconds`` to go on with.

    Raises:
        DataError: One of them is damaged.
    """
    recipe, kind = assembly.recipe, assembly.kind
    run = read_run_record(recipe.output_dir) if read_run(recipe.output_dir) is not None else None
    is_exported = run is not None and run.finished(EXPORT.name) is not None
    return Result(
        recipe.name,
        recipe.output_dir,
        folders.place(EXPORT) if is_exported else None,
        kind.headline,
        kind.higher_is_better,
        {} if run is None else {name: _scores(values, kind.headline) for name, values in run.models.items()},
        {} if run is None else {one.name: _phase(run, one) for one in run.phases},
        seconds,
    )


def _scores(values: Mapping[str, float], headline: str) -> Scores:
    metrics = {name: value for name, value in values.items() if name not in (TOKENS_PER_S, PARAMETERS)}
    return Scores(metrics.get(headline, math.nan), metrics, int(values[PARAMETERS]), values[TOKENS_PER_S])


def _phase(run: RunRecord, done: Finished) -> PhaseResult:
    trains = TOKENS in done.result
    return PhaseResult(
        done.name,
        run.folder / done.name,
        done.seconds,
        run.of_phase(done.name)[-1]["step"] if trains else None,
        int(done.result[TOKENS]) if trains else None,
        done.result,
    )
