"""Where the models that a run names are now: its folder may have been moved since, and be asked for from anywhere.

A manifest has the path that the run knew a model by: relative to where it was started, as its ``output_dir`` may be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ted_ds.errors import DataError
from ted_ds.models.folder import CONFIG_FILE
from ted_ds.output.phase_folder import model_identity
from ted_ds.output.results import STUDENT
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.output.study_folder import RUNS_FOLDER
from ted_ds.planning.phase import DISTILL, EVALUATE
from ted_ds.reports.reading import RunRecord

UP_TO_STUDY = 3
"""Folders from that of a study's run up to the study's own: its seed's, its arm's, and that of all runs."""


class Places:
    """Of one run."""

    def __init__(self, run: RunRecord) -> None:
        """Take the run, with what it says of where it was started."""
        self._folder = run.folder
        starts = [one for one in reversed(run.starts) if isinstance(one.get("folder"), str)]
        self._started_in = [Path(one) for one in dict.fromkeys(one["folder"] for one in starts)]
        known = [Path(one["output_dir"]) for one in starts if isinstance(one.get("output_dir"), str)]
        self._output_dirs = list(dict.fromkeys(map(_plain, [*known, *_told_by_student(run)])))

    def in_run(self, recorded: str) -> Path | None:
        """Where in the run's own folder something is; None of what lies elsewhere."""
        within = self._below(recorded, self._output_dirs)
        path, own = Path(recorded), self._folder.resolve()
        is_told = path.is_absolute() or (not self._output_dirs and path.exists())
        if within is None and is_told and path.resolve().is_relative_to(own):
            return path.resolve().relative_to(own)
        return within

    def model(self, name: str, identity: Mapping[str, str], *, or_else: str = "") -> Path:
        """The folder of a model, as a manifest names it.

        Args:
            name: What it is called in a message.
            identity: See :func:`ted_ds.output.phase_folder.model_identity`.
            or_else: What can be done where it is not there, beside the obvious.

        Raises:
            DataError: It is not there, or another model is.
        """
        within = self.in_run(identity["path"])
        if within is not None:
            place = self._folder / within
            if not _is_model(place):
                raise DataError(
                    f"{self._folder}: its {name} is no more in it ({place}); copy it there, too, or start the run "
                    f"again, which makes what is missing{or_else}"
                )
            return place
        place = next(filter(_is_model, self._elsewhere(identity["path"])), None)
        if place is not None:
            return place
        started_in = next(filter(Path.is_dir, self._started_in), None)
        if Path(identity["path"]).is_absolute() or started_in is not None:
            place = (started_in or Path()) / identity["path"]
            raise DataError(f"{self._folder}: its {name} was at {place}, and is no more; put it back{or_else}")
        return self._guessed(name, identity, or_else)

    def _elsewhere(self, recorded: str) -> Iterator[Path]:
        """Where what is not in the run may be: in its study, which may have been moved as a whole, and where it was."""
        for output_dir in self._output_dirs:
            parts = output_dir.parts[-UP_TO_STUDY:]
            if parts[:1] == (RUNS_FOLDER,) and self._folder.resolve().parts[-UP_TO_STUDY:] == parts:
                study = _plain(output_dir.parents[UP_TO_STUDY - 1])
                within = self._below(recorded, [study])
                if within is not None:
                    yield self._folder.resolve().parents[UP_TO_STUDY - 1] / within
        if Path(recorded).is_absolute():
            yield Path(recorded)
        else:
            yield from (folder / recorded for folder in self._started_in)

    def _guessed(self, name: str, identity: Mapping[str, str], or_else: str) -> Path:
        """The model at a relative path from here, as nobody knows where the run was started: the same, or none."""
        place = Path(identity["path"])
        where = f"start this in the folder that the run was started in{or_else}"
        if not _is_model(place):
            raise DataError(f"{self._folder}: its {name} was at {place}, where it is not seen from here; {where}")
        if "sha256" in identity and model_identity(place)["sha256"] != identity["sha256"]:
            raise DataError(f"{self._folder}: its {name} was at {place}; from here that is another model; {where}")
        return place

    def _below(self, recorded: str, folders: list[Path]) -> Path | None:
        """The rest of a path behind the first of these folders that it is in, whichever of them are relative."""
        ways = [_plain(recorded), *(_plain(folder / recorded) for folder in self._started_in)]
        owns = [*folders, *(_plain(folder / own) for folder in self._started_in for own in folders)]
        found = (way.relative_to(own) for own in owns for way in ways if way.is_relative_to(own))
        return next((rest for rest in found if rest.parts[:1] != (os.pardir,)), None)


def _plain(path: Path | str) -> Path:
    """Without ``.`` and ``..`` within it, as far as that is known without looking."""
    return Path(os.path.normpath(path))


def _told_by_student(run: RunRecord) -> Iterator[Path]:
    """The ``output_dir`` of a run that was scored: its student is one of its own folders, and told as such."""
    done = run.finished(EVALUATE.name)
    scored = {} if done is None else done.inputs.get("models", {})
    if STUDENT in scored:
        path = Path(scored[STUDENT]["path"])
        if path.parts[-2:] == (DISTILL.name, MODEL_FOLDER):
            yield path.parents[1]


def _is_model(place: Path) -> bool:
    return (place / CONFIG_FILE).is_file()
