"""The runs of a study: what each is started with, where it is, and whether it is complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.config.schema import Recipe
from ted_ds.data.reading.listing import list_data
from ted_ds.errors import DataError
from ted_ds.launching.side_by_side import Job, command_of_run
from ted_ds.output.output_lock import living_owner
from ted_ds.output.phase_folder import MANIFEST
from ted_ds.output.results import RESULTS_FILE, TEACHER
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.output.study_folder import LOGS_FOLDER, RUNS_FOLDER, TEACHERS_FOLDER
from ted_ds.planning.phase import EVALUATE, FINETUNE_TEACHER, phases_of
from ted_ds.planning.study_arms import Arm, Changes, as_overrides
from ted_ds.planning.study_plan import StudyPlan
from ted_ds.planning.study_search import Trial, shortened

PHASES_FOLDER = "phases"
SEARCH_FOLDER = "search"
CACHE_FOLDER = "teacher_cache"
OTHER_TESTS = ("perplexity", "last_word", "lm_eval")
"""Of ``evaluation``: what is scored beside held-out data."""
RECORD = "record.json"
HASH_LENGTH = 12
BESIDE_THE_TEACHER: dict[str, Any] = {
    **dict.fromkeys(("name", "seed", "output_dir", "shared_phases", "study", "tracking"), True),
    **dict.fromkeys(("student", "filters", "layer_map", "distill"), True),
    "teacher": {"cache", "host", "offload_dir"},
    "data": {"transfer", "transfer_share"},
}
"""Keys that a teacher's training and scores do not hang on."""


def teacher_key(recipe: Recipe) -> str:
    """What tells recipes with different teachers apart."""
    return hashlib.sha256(recipe.model_dump_json(exclude=BESIDE_THE_TEACHER).encode()).hexdigest()[:HASH_LENGTH]


def what_is_read(recipe: Recipe) -> list[str]:
    """The files of a recipe's data and models as they are now."""
    return [*_files_of_data(recipe.data.model_dump_json(), recipe), *_files_of_models(recipe)]


def _files_of_data(text: str, recipe: Recipe) -> list[str]:
    if text not in _LISTED:
        try:
            files = [file for source in list_data(recipe.data).sources for file in source.files]
        except DataError:  # which the run says that needs it
            files = []
        _LISTED[text] = [f"{one} {_written(Path(one.url))}" for one in files]
    return _LISTED[text]


_LISTED: dict[str, list[str]] = {}
"""Of each ``data`` section that was asked for: a study looks once."""


def _files_of_models(recipe: Recipe) -> list[str]:
    folders = [Path(one) for one in (recipe.teacher.path, recipe.student.path) if one is not None]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    return [f"{file} {file.stat().st_size} {_written(file)}" for file in files]


def _written(file: Path) -> int | None:
    """When a file of this machine was; None for another's."""
    return file.stat().st_mtime_ns if file.is_file() else None


def _name_of_teacher(key: str) -> str:
    """What the run that trains a teacher is called."""
    return f"teacher.{key}"


@dataclass(frozen=True)
class StudyRun:
    """One run."""

    name: str
    """In words, and of its log."""
    folder: Path
    verb: str
    recipe: Recipe
    """As its arm has it."""
    changes: Changes
    """To the recipe that the study was started with."""
    arm: str | None = None
    """Whose it is; None for a teacher's."""
    needs: tuple[str, ...] = ()
    """The names of runs that must be complete before it."""

    @property
    def record(self) -> Path:
        """Says that the run is complete, and what it was."""
        return self.folder.with_name(f"{self.folder.name}.{RECORD}")

    @property
    def key(self) -> str:
        """What the run is: its settings, those of its DeepSpeed JSON, and the files of its data and models.

        A file that was written anew has the run started again, which skips phases whose files say the same as before.
        """
        described = [self.verb, self.recipe.model_dump(mode="json", exclude={"study"}), dict(self.changes)]
        described.append(what_is_read(self.recipe))
        text = json.dumps(described, sort_keys=True) + self.recipe.deepspeed.read_text(encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def recorded(self) -> dict[str, Any]:
        """What was written down when it was complete; nothing where it never was."""
        try:
            known = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def is_complete(self) -> bool:
        """Whether it was completed as it is, and its last phase is there."""
        last = FINETUNE_TEACHER if self.verb == FINETUNE_TEACHER.verb else EVALUATE
        return self.recorded.get("key") == self.key and (self.folder / last.name / MANIFEST).is_file()

    def mark_complete(self) -> None:
        """Write that down."""
        beside = self.record.with_name(f".{self.record.name}")
        beside.write_text(json.dumps({"key": self.key, "seed": self.changes["seed"]}) + "\n", encoding="utf-8")
        beside.replace(self.record)

    def seconds(self) -> dict[str, float | None]:
        """How long each of its phases took, in whichever run it was done; None where its manifest does not say."""
        found: dict[str, float | None] = {}
        for phase in phases_of(self.recipe):
            file = self.folder / phase.name / MANIFEST
            if file.is_file():
                found[phase.name] = json.loads(file.read_text(encoding="utf-8")).get("seconds")
        return found


def _models_scored(folder: Path) -> str | None:
    """Which a run's evaluation scored, as ``evaluation.models`` says it; None where there is none yet."""
    file = folder / EVALUATE.name / RESULTS_FILE
    if not file.is_file():
        return None
    return "all" if TEACHER in json.loads(file.read_text(encoding="utf-8")) else "student"


class Runs:
    """Says what the runs of a study are."""

    def __init__(self, plan: StudyPlan, path: str, overrides: Sequence[str]) -> None:
        """Take the plan, and what the study was started with."""
        self._plan, self._path, self._overrides = plan, path, overrides
        self._output = plan.recipe.output_dir
        first_of_teacher: dict[str, str] = {}
        for name, arm in plan.arms.items():
            first_of_teacher.setdefault(teacher_key(arm.recipe), name)
        self._first_of_teacher = first_of_teacher

    def teachers(self) -> list[StudyRun]:
        """One for each teacher that is trained; it begins the first arm that has it, with the first seed.

        Where it was trained for other seeds, it stays as it is.
        """
        found = []
        for key, name in self._first_of_teacher.items():
            arm = self._plan.arms[name]
            if FINETUNE_TEACHER.is_in(arm.recipe):
                folder = self._output / TEACHERS_FOLDER / key
                found += [self._teacher(key, folder, arm)]
        return found

    def _teacher(self, key: str, folder: Path, arm: Arm) -> StudyRun:
        def with_seed(seed: int) -> StudyRun:
            own = self._own(f"{self._plan.recipe.name}.teacher", folder, seed, arm)
            return StudyRun(_name_of_teacher(key), folder, FINETUNE_TEACHER.verb, arm.recipe, {**arm.changes, **own})

        first = with_seed(self._plan.seeds[0])
        return with_seed(first.recorded.get("seed", self._plan.seeds[0]))

    def of_arms(self) -> list[StudyRun]:
        """One for each seed and arm, seed by seed."""
        return [self.of(arm, seed) for seed in self._plan.seeds for arm in self._plan.arms.values()]

    def of(self, arm: Arm, seed: int) -> StudyRun:
        """That of an arm and a seed. Only the first with its teacher scores more than its student.

        One that was scored before, in a study of other arms or seeds, has what it has.
        """
        folder = self._output / RUNS_FOLDER / arm.name / f"seed-{seed}"
        own = self._own(f"{self._plan.recipe.name}.{arm.name}.{seed}", folder, seed, arm)
        key = teacher_key(arm.recipe)
        scored = _models_scored(folder)
        if scored is None:
            is_first = self._first_of_teacher[key] == arm.name and seed == self._plan.seeds[0]
            scored = "all" if is_first else "student"
        own |= {"evaluation.outcomes": True, "evaluation.models": scored}
        changes = {**arm.changes, **own, **self._teacher_of(arm)}
        return StudyRun(f"{arm.name}.seed-{seed}", folder, "run", arm.recipe, changes, arm.name, self._needs_of(arm))

    def of_trial(self, trial: Trial, halved: int) -> StudyRun:
        """That of a trial, with the steps of Stage II halved so often; it is scored on held-out data alone."""
        arm, seed = trial.arm, self._plan.seeds[0]
        # by what is tried: grids change, and places in them with them
        setting = hashlib.sha256(json.dumps(trial.setting, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]
        folder = self._output / SEARCH_FOLDER / arm.name / setting / f"halved-{halved}"
        name = f"{arm.name}.trial-{trial.number}.halved-{halved}"
        own = self._own(f"{self._plan.recipe.name}.{name}", folder, seed, arm)
        changes = {**arm.changes, **own, **self._teacher_of(arm), **shortened(arm.recipe, arm.steps, halved)}
        others = {"data.test": arm.recipe.data.test, "data.apart": arm.recipe.data.apart}
        others |= {f"evaluation.{key}": getattr(arm.recipe.evaluation, key) for key in OTHER_TESTS}
        changes |= {key: None for key, value in others.items() if value is not None}
        changes |= {"evaluation.outcomes": True, "evaluation.models": "student"}
        return StudyRun(name, folder, "run", arm.recipe, changes, arm.name, self._needs_of(arm))

    def scorer_of_teacher(self, arm: Arm) -> StudyRun:
        """The run that scores the teacher of an arm."""
        key = teacher_key(arm.recipe)
        same = [one for one in self._plan.arms.values() if teacher_key(one.recipe) == key]
        runs = [self.of(one, seed) for seed in self._plan.seeds for one in same]
        return next((run for run in runs if _models_scored(run.folder) == "all"), runs[0])

    def job(self, run: StudyRun) -> Job:
        """The command of a run; it waits for one that was left behind, should this study have been killed."""
        arguments = [run.verb, self._path, *self._overrides, *as_overrides(run.changes)]

        def waits_for() -> str | None:
            owner = living_owner(run.folder)
            return None if owner is None else f"{owner}, which is at it"

        log = self._output / LOGS_FOLDER / f"{run.name}.log"
        num_ranks = self._plan.study.ranks
        return Job(run.name, lambda: command_of_run(arguments, num_ranks), log, waits_for)

    def _teacher_of(self, arm: Arm) -> dict[str, Any]:
        """What has an arm read the teacher that was trained for it; nothing where none was."""
        if not FINETUNE_TEACHER.is_in(arm.recipe):
            return {}
        folder = self._output / TEACHERS_FOLDER / teacher_key(arm.recipe)
        teacher = folder / FINETUNE_TEACHER.name / MODEL_FOLDER
        return {"teacher.path": str(teacher), "teacher.finetune": None, "teacher.dropout": {}}

    @staticmethod
    def _needs_of(arm: Arm) -> tuple[str, ...]:
        """The runs that must be complete before those of an arm."""
        return (_name_of_teacher(teacher_key(arm.recipe)),) if FINETUNE_TEACHER.is_in(arm.recipe) else ()

    def _own(self, name: str, folder: Path, seed: int, arm: Arm) -> dict[str, Any]:
        """What any run of the study has of its own."""
        own = {
            "name": name,
            "seed": seed,
            "output_dir": str(folder),
            "shared_phases": str(self._output / PHASES_FOLDER),
            "study": None,
        }
        upload = arm.recipe.checkpoint.upload
        if upload is not None:  # each run its own place
            own["checkpoint.upload.to"] = f"{upload.to}/{folder.relative_to(self._output).as_posix()}"
        cache = arm.recipe.teacher.cache
        return own | ({"teacher.cache.dir": str(self._output / CACHE_FOLDER)} if cache and cache.dir is None else {})
