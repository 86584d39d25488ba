"""Where the phases of a run put their results, from the models it starts with to the student it exports."""

from __future__ import annotations

from pathlib import Path

from ted_ds.config.schema import Recipe
from ted_ds.output.phase_folder import model_identity
from ted_ds.output.results import BEGUN, STUDENT, TEACHER
from ted_ds.planning.phase import (
    CUT_STUDENT,
    DISTILL,
    EXPORT,
    FINETUNE_STUDENT,
    FINETUNE_TEACHER,
    HEAL_STUDENT,
    RANDOM_STUDENT,
    Phase,
    phases_of,
)

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"


def filters_subfolder(phase: Phase, side: str) -> str:
    """Where in its result a phase of Stage I puts a side's filters."""
    return side if len(phase.frozen) > 1 else "."


class RunFolders:
    """The folders of one run."""

    def __init__(self, recipe: Recipe, *, teacher: Path, student: Path | None) -> None:
        """Start from the teacher's folder and the student's (None where it is made of the teacher)."""
        self._recipe, self._output = recipe, recipe.output_dir
        self.teacher_origin, self.student_origin = teacher, student
        self._identities: dict[Path, dict[str, str]] = {}

    def place(self, phase: Phase) -> Path:
        """Where a phase puts its result."""
        return self._output / phase.name

    def teacher_path(self) -> Path:
        """The teacher that Stage I and II read."""
        return self._model_of(FINETUNE_TEACHER) if FINETUNE_TEACHER.is_in(self._recipe) else self.teacher_origin

    def student_begun_path(self) -> Path:
        """The student as it was made or given."""
        is_random = RANDOM_STUDENT.is_in(self._recipe)
        return self.student_origin or self._model_of(RANDOM_STUDENT if is_random else CUT_STUDENT)

    def student_start_path(self) -> Path:
        """The student before any training."""
        return self._model_of(HEAL_STUDENT) if HEAL_STUDENT.is_in(self._recipe) else self.student_begun_path()

    def student_path(self) -> Path:
        """The student that Stage I and II read."""
        return self._model_of(FINETUNE_STUDENT) if FINETUNE_STUDENT.is_in(self._recipe) else self.student_start_path()

    def distilled_path(self) -> Path:
        """The student after Stage II."""
        return self._model_of(DISTILL)

    def adapter_path(self) -> Path:
        """The adapter that Stage II trained, where it did."""
        return self.place(DISTILL) / ADAPTER_FOLDER

    def exports_adapter(self) -> bool:
        """Whether the export is the adapter alone."""
        lora = self._recipe.student.lora
        return lora is not None and lora.export == "adapter"

    def plain_export_path(self) -> Path:
        """The exported student as a whole model: the export, or what its adapter was merged into."""
        return self.distilled_path() if self.exports_adapter() else self.place(EXPORT)

    def evaluated_paths(self) -> dict[str, Path]:
        """The models that the evaluation compares, by name."""
        models = {TEACHER: self.teacher_path(), BEGUN: self.student_begun_path()}
        if HEAL_STUDENT.is_in(self._recipe):
            models["student healed"] = self.student_start_path()
        if FINETUNE_STUDENT.is_in(self._recipe):
            models["student fine-tuned"] = self.student_path()
        return {**models, STUDENT: self.distilled_path()}

    def filters_phase(self, side: str) -> Phase:
        """The phase that learns a side's filters."""
        return next(phase for phase in phases_of(self._recipe) if phase.learns_filters and side in phase.frozen)

    def filters_path(self, side: str) -> Path:
        """Where Stage I leaves a side's filters."""
        phase = self.filters_phase(side)
        return self.place(phase) / filters_subfolder(phase, side)

    def identity(self, folder: Path) -> dict[str, str]:
        """What names a model (:func:`ted_ds.output.phase_folder.model_identity`), computed once."""
        if folder not in self._identities:
            self._identities[folder] = model_identity(folder)
        return self._identities[folder]

    def identity_in_run(self, folder: Path) -> dict[str, str]:
        """What names a model that a phase left, for a manifest that leaves this machine: its path within the run."""
        return {**self.identity(folder), "path": folder.relative_to(self._output).as_posix()}

    def _model_of(self, phase: Phase) -> Path:
        return self.place(phase) / MODEL_FOLDER
