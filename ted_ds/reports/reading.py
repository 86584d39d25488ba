"""The files of a run's folder, as a report needs them."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ted_ds.errors import CheckpointError, DataError
from ted_ds.output.phase_folder import MANIFEST
from ted_ds.output.results import RESULTS_FILE, SAMPLES_FILE
from ted_ds.output.run_folder import RUN_FILE, read_run, read_starts
from ted_ds.output.study_folder import LOGS_FOLDER, RUNS_FOLDER, STUDY_FILE, TEACHERS_FOLDER
from ted_ds.output.trackers.jsonl_backend import METRICS_FILE
from ted_ds.planning.phase import EVALUATE, PHASES
from ted_ds.tasks.kind import KINDS, kind_of

OF_LAYER = re.compile(r"(?P<metric>.+)/(?P<layer>(\w+\.)?(layer|encoder|decoder)_\d+(_\d+)?)")
"""A metric of one layer."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """The metric that models are compared by."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Finished:
    """What a phase that is complete says of itself (``phase.json``)."""

    name: str
    inputs: Mapping[str, Any]
    result: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """What a run left in its folder."""

    folder: Path
    name: str
    """That of the folder, or what tells it from others."""
    run_id: str
    records: Sequence[Record]
    """Of ``metrics.jsonl``, the last of each phase and step: a run that went on reports some steps twice."""
    phases: Sequence[Finished]
    """In the order of the chain."""
    models: Mapping[str, Mapping[str, float]]
    """Scores of each evaluated model; empty before ``evaluate``."""
    starts: Sequence[Record] = ()
    """When it was started, and where it went on: lines of ``starts.jsonl``."""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """What models make of a few examples (``evaluate/samples.json``)."""

    def of_phase(self, phase: str) -> list[Record]:
        """The reports of a phase, by their steps."""
        return sorted((one for one in self.records if one["phase"] == phase), key=lambda one: one["step"])

    @property
    def reported_phases(self) -> list[str]:
        """Phases with reports, in the order of their first."""
        return list(dict.fromkeys(one["phase"] for one in self.records))

    def finished(self, phase: str) -> Finished | None:
        """A phase, if it is complete."""
        return next((one for one in self.phases if one.name == phase), None)

    @functools.cached_property
    def headline(self) -> Headline | None:
        """That of the task; None before ``evaluate``."""
        kind = None if self.task is None else kind_of(self.task)
        return None if kind is None else Headline(kind.headline, kind.higher_is_better)

    @functools.cached_property
    def task(self) -> Any:
        """The recipe's section, as far as what it names is no file; None before ``evaluate``.

        Raises:
            DataError: It is of no kind that this version knows.
        """
        done = self.finished(EVALUATE.name)
        return None if done is None else _task_of(done.inputs["task"], self.folder)

    @property
    def known_task(self) -> Any:
        """The same, as the last phase that is complete has it; None where none has one.

        Raises:
            DataError: It is of no kind that this version knows.
        """
        found = [done.inputs["task"] for done in self.phases if "task" in done.inputs]
        return _task_of(found[-1], self.folder) if found else None

    def score(self, model: str) -> float | None:
        """A model's headline."""
        return self.models[model].get(self.headline.name) if model in self.models and self.headline else None


def told_apart(folders: Sequence[Path]) -> list[str]:
    """Of each folder the last parts of its path: one, and more where others would be called alike."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=1)):
        names = ["/".join(one[-count:]) for one in parts]
        if len({*names}) == len({*parts}):
            return names
    return [str(folder) for folder in folders]


def read_run_record(folder: Path, name: str | None = None) -> RunRecord:
    """All that a report needs of a run; it is called by its folder, or by ``name``.

    Raises:
        DataError: There is no such folder, no run in it, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the output_dir of a run or a study")
    try:
        run = read_run(folder)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if run is None:
        raise DataError(
            study_in(folder)
            or f"{folder}: no run began in this folder (it has no {RUN_FILE}); give the output_dir of a run or a study"
        )
    done = [_finished(folder, phase.name) for phase in PHASES]
    evaluation, samples = (folder / EVALUATE.name / name for name in (RESULTS_FILE, SAMPLES_FILE))
    return RunRecord(
        folder,
        folder.resolve().name if name is None else name,
        run.run_id,
        _records(folder / METRICS_FILE),
        [one for one in done if one is not None],
        _json(evaluation) if evaluation.is_file() else {},
        read_starts(folder),
        _json(samples) if samples.is_file() else {},
    )


def study_in(folder: Path) -> str | None:
    """What to say of a study's folder that was given as a run's; None of other folders."""
    runs = sorted([*folder.glob(f"{RUNS_FOLDER}/*/*/{RUN_FILE}"), *folder.glob(f"{TEACHERS_FOLDER}/*/{RUN_FILE}")])
    one = f"give the folder of one of its runs, such as {runs[0].parent}" if runs else "none of its runs has begun yet"
    if (folder / STUDY_FILE).is_file():
        return f"{folder}: a study, and no single run; {one}"
    if not runs and not any(folder.glob(f"{LOGS_FOLDER}/*.seed-*.log")):
        return None
    return (
        f"{folder}: a study that goes on, or was stopped (it has no {STUDY_FILE}, which is written at its end); wait "
        f"for its end, or start it again if it was stopped; meanwhile {one}"
    )


def _finished(folder: Path, phase: str) -> Finished | None:
    file = folder / phase / MANIFEST
    if not file.is_file():
        return None
    content = _json(file)
    try:
        return Finished(phase, content["inputs"], content["result"], content.get("seconds", 0.0))
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error!r}); run the phase again") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); run the phase again") from error


def _records(file: Path) -> list[Record]:
    if not file.is_file():
        return []
    found: dict[tuple[str, int], Record] = {}
    for record in _whole_lines(file):
        key = (record["phase"], record["step"])
        found[key] = {**found.get(key, {}), **record}
    return list(found.values())


def _whole_lines(file: Path) -> Iterator[Record]:
    """The records of a file that a run may still be writing: a last line without its end is left out."""
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int) or not isinstance(record["phase"], str):
                raise TypeError("its step is no whole number, or its phase no name")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: no report of a run ({error!r}); remove that line") from error
        yield record


def _task_of(values: Mapping[str, Any], folder: Path) -> Any:
    by_kind = {kind: section for section in KINDS for kind in get_args(section.model_fields["kind"].annotation)}
    section = by_kind.get(values.get("kind"))
    if section is None:
        raise DataError(f"{folder}: its task is a {values.get('kind')!r}, which this version does not know")
    return section.model_construct(**values)


def is_number(value: Any) -> bool:
    """Whether a report can draw it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
