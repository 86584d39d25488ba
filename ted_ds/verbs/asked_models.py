"""The models that a folder stands for, to be asked beside each other: a run's, or that of a phase, or of any folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ted_ds.errors import DataError
from ted_ds.models.folder import ADAPTER_FILE, CONFIG_FILE
from ted_ds.output.results import STUDENT, TEACHER
from ted_ds.output.run_folder import RUN_FILE
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.planning.phase import CUT_STUDENT, DISTILL, EVALUATE, FINETUNE_TEACHER, HEAL_STUDENT, PHASES
from ted_ds.reports.places import Places
from ted_ds.reports.reading import RunRecord, read_run_record, study_in

OTHER_TEACHER = ", or name a teacher with --teacher DIR"
WHAT_TO_GIVE = "give the output_dir of a run, one of its phases, or a model folder"
WITH_TEACHER = (DISTILL, HEAL_STUDENT, CUT_STUDENT)
"""Phases that read a teacher, in the order in which they are asked for it where it was not scored."""


class Asked(NamedTuple):
    """What is asked."""

    paths: Mapping[str, Path]
    """Model folders by name; the teacher, where there is one, is the first."""
    run: RunRecord | None
    """Where they are from; None of a folder that is in no run."""


def asked_models(folder: Path, teacher: Path | None) -> Asked:
    """The teacher, where there is one, and the student.

    Args:
        folder: A run's, of one of its phases, or a model's.
        teacher: A model folder; None for that of the run.

    Raises:
        DataError: There is no model, or it is elsewhere.
    """
    others = {} if teacher is None else {TEACHER: _model_in(teacher)}
    if (folder / RUN_FILE).is_file():
        run = read_run_record(folder)
        return Asked({**(others or _teacher_of(run)), **_student_of(run)}, run)
    student = _model_in(folder)
    run = _run_around(folder)
    if run is not None and teacher is None:
        others = _seen_teacher_of(run)
    # of the teacher itself there is no other
    others = {name: path for name, path in others.items() if path.resolve() != student.resolve()}
    return Asked({**others, folder.resolve().name: student}, run)


def _student_of(run: RunRecord) -> dict[str, Path]:
    """That which came out, as far as it was scored."""
    done = run.finished(EVALUATE.name)
    if done is None:
        raise DataError(f"{run.folder}: its models are not scored yet; start its run again, which goes on to the end")
    scored = done.inputs["models"]
    return {STUDENT: Places(run).model(STUDENT, scored[STUDENT])} if STUDENT in scored else {}


def _teacher_of(run: RunRecord) -> dict[str, Path]:
    """That which the run trained or scored, or which a phase of it read; nothing where it had none."""
    identity = next(_named_teachers(run), None)
    return {} if identity is None else {TEACHER: Places(run).model(TEACHER, identity, or_else=OTHER_TEACHER)}


def _named_teachers(run: RunRecord) -> Iterator[Mapping[str, str]]:
    if run.finished(FINETUNE_TEACHER.name) is not None:  # in the run's own folder, whoever trained it
        yield {"path": str(run.folder.resolve() / FINETUNE_TEACHER.name / MODEL_FOLDER)}
    scored = run.finished(EVALUATE.name)
    if scored is not None and TEACHER in scored.inputs["models"]:
        yield scored.inputs["models"][TEACHER]
    for phase in WITH_TEACHER:
        done = run.finished(phase.name)
        if done is not None and TEACHER in done.inputs:
            yield done.inputs[TEACHER]


def _seen_teacher_of(run: RunRecord) -> dict[str, Path]:
    """The same beside a model that was asked for by itself, which is shown alone where its teacher is not there."""
    try:
        return _teacher_of(run)
    except DataError as error:
        print(f"WARN {error}; without it:", file=sys.stderr)
        return {}


def _model_in(folder: Path) -> Path:
    for place in (folder, folder / MODEL_FOLDER):
        if (place / CONFIG_FILE).is_file():
            return place
        if (place / ADAPTER_FILE).is_file():
            raise DataError(
                f"{place}: an adapter without its model; give the whole model, as distill/model of a run is"
            )
    what = f"there is no model in it (no {CONFIG_FILE}, nor in a folder {MODEL_FOLDER})"
    run = _folder_around(folder)
    if run is not None:
        found = [phase.name for phase in PHASES if _has_model(run / phase.name)]
        others = f"phases of this run with a model: {', '.join(found)}" if found else "no phase of this run has one yet"
        raise DataError(f"{folder}: {what if folder.is_dir() else 'no such folder'}; {others}")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {WHAT_TO_GIVE}")
    raise DataError(
        study_in(folder) or f"{folder}: no run began in this folder (it has no {RUN_FILE}), and {what}; {WHAT_TO_GIVE}"
    )


def _has_model(folder: Path) -> bool:
    return any((place / CONFIG_FILE).is_file() for place in (folder, folder / MODEL_FOLDER))


def _folder_around(folder: Path) -> Path | None:
    """That of the run which a folder is in, be it of a phase or its model."""
    return next((one for one in folder.resolve().parents[:2] if (one / RUN_FILE).is_file()), None)


def _run_around(folder: Path) -> RunRecord | None:
    run = _folder_around(folder)
    return None if run is None else read_run_record(run)
