"""Where the phases of a run put their results, and what each of these depends on."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.reading.listing import DataListing
from ted_ds.output.phase_folder import MANIFEST, PhaseFolder, model_identity
from ted_ds.planning.pipeline_cut import FILTER_PHASES, filter_phases
from ted_ds.planning.plan import PLAN_OF_PHASE, Plan

MODEL_FOLDER = "model"
UNDECIDING_DATA_KEYS: dict[str, Any] = {
    **dict.fromkeys(("padding", "workers", "bad_records"), True),
    # files are known by what they are, wherever they are
    **{part: {"__all__": {"path"}} for part in ("train", "evaluation")},
}
"""What may change in ``data`` without a change in results."""


def filters_subfolder(phase: str, side: str) -> str:
    """Where in its result a phase of Stage I puts a side's filters."""
    return side if len(FILTER_PHASES[phase]) > 1 else "."


class Settled(NamedTuple):
    """What decides the results of a run, beside the models it starts from."""

    recipe: Recipe
    plan: Plan
    deepspeed_json: dict[str, Any]
    listing: DataListing
    start_tokens: list[str] | None
    """What ``task.bos`` came to; None where texts have no such beginning at all."""
    in_8_bits: bool
    """Whether the teacher's weights are not its files'."""


class Layout:
    """The folders of one run, from the models it starts with to the student it exports."""

    def __init__(self, settled: Settled, *, teacher: Path, student: Path | None) -> None:
        """Start from the teacher's folder and the student's (None where it is cut from the teacher)."""
        self._settled, self._recipe = settled, settled.recipe
        self._output = settled.recipe.output_dir
        self.teacher_origin, self.student_origin = teacher, student
        self._identities: dict[Path, dict[str, str]] = {}

    def folder(self, phase: str) -> PhaseFolder:
        """Where a phase puts its result, and what that depends on."""
        inputs: dict[str, Callable[[], dict[str, Any]]] = {
            "finetune_teacher": lambda: self._training_inputs(self._recipe.teacher.finetune, model=self.teacher_origin),
            "cut_student": lambda: {
                "teacher": self.identity(self.teacher_path()),
                "blocks": self._recipe.student.from_teacher and self._recipe.student.from_teacher.blocks,
            },
            "finetune_student": lambda: {
                **self._training_inputs(self._recipe.student.finetune, model=self.student_start_path()),
                **self._frozen_part(),
            },
            **{name: functools.partial(self._filter_inputs, name) for name in FILTER_PHASES},
            "distill": self._distill_inputs,
            "evaluate": lambda: {
                "models": {name: self.identity(path) for name, path in self.evaluated_paths().items()},
                **self._in_8_bits(),
                "data_files": self._settled.listing.identity(),
                **self._recipe_values("evaluation", "data", "task"),
            },
            "export": lambda: {"student": self._identity_in_run(self.distilled_path())},
        }
        return PhaseFolder(self._output / phase, inputs[phase]())

    def teacher_path(self) -> Path:
        """The teacher that Stage I and II read."""
        tuned = self._recipe.teacher.finetune is not None
        return self._output / "finetune_teacher" / MODEL_FOLDER if tuned else self.teacher_origin

    def student_start_path(self) -> Path:
        """The student before any training."""
        return self.student_origin or self._output / "cut_student" / MODEL_FOLDER

    def student_path(self) -> Path:
        """The student that Stage I and II read."""
        tuned = self._recipe.student.finetune is not None
        return self._output / "finetune_student" / MODEL_FOLDER if tuned else self.student_start_path()

    def distilled_path(self) -> Path:
        """The student after Stage II."""
        return self._output / "distill" / MODEL_FOLDER

    def evaluated_paths(self) -> dict[str, Path]:
        """The models that the evaluation compares, by name."""
        models = {"teacher": self.teacher_path(), "student before": self.student_start_path()}
        if self._recipe.student.finetune is not None:
            models["student fine-tuned"] = self.student_path()
        return {**models, "student after": self.distilled_path()}

    def filters_phase(self, side: str) -> str:
        """The phase that learns a side's filters."""
        return next(phase for phase in filter_phases(self._recipe) if side in FILTER_PHASES[phase])

    def filters_path(self, side: str) -> Path:
        """Where Stage I leaves a side's filters."""
        phase = self.filters_phase(side)
        return self._output / phase / filters_subfolder(phase, side)

    def identity(self, folder: Path) -> dict[str, str]:
        """What names a model (:func:`ted_ds.output.phase_folder.model_identity`), computed once."""
        if folder not in self._identities:
            self._identities[folder] = model_identity(folder)
        return self._identities[folder]

    def _identity_in_run(self, folder: Path) -> dict[str, str]:
        """What names a model that a phase left, for a manifest that leaves this machine: its path within the run."""
        return {**self.identity(folder), "path": folder.relative_to(self._output).as_posix()}

    def _training_inputs(self, plan: PhasePlan | None, **models: Path) -> dict[str, Any]:
        return {
            **{name: self.identity(model) for name, model in models.items()},
            "plan": None if plan is None else plan.deciding_values(),
            # how models are sharded does not decide the result: a requeued run may change it
            "deepspeed": {key: self._settled.deepspeed_json.get(key) for key in ("optimizer", "scheduler")},
            "data_files": self._settled.listing.identity(),
            **self._recipe_values("task", "data", "seed", "precision"),
        }

    def _recipe_values(self, *sections: str) -> dict[str, Any]:
        """What sections of the recipe say, with what ``task.bos`` came to in its place."""
        values = without_secrets(
            self._recipe.model_dump(mode="json", include={*sections}, exclude={"data": UNDECIDING_DATA_KEYS})
        )
        if self._settled.start_tokens is not None:  # None, as in phases from before the setting, where nothing is added
            values["task"]["bos"] = self._settled.start_tokens or None
        return values

    def _filter_inputs(self, phase: str) -> dict[str, Any]:
        filters = self._recipe.filters
        assert filters is not None
        shape = filters.model_dump(mode="json", include={"kind", "initialisation", "lm_head", "pooling"})
        sides = FILTER_PHASES[phase]
        paths = {"teacher": self.teacher_path, "student": self.student_path}
        models = {side: paths[side]() for side in sides}
        layers = {side: list(self._settled.plan.layers(side)) for side in sides}
        return {
            **self._training_inputs(self._recipe.phase_plans()[PLAN_OF_PHASE[phase]], **models),
            "filters": {**shape, "layers": layers, "dim": self._settled.plan.filter_dim},
            **(self._in_8_bits() if "teacher" in sides else {}),
        }

    def _distill_inputs(self) -> dict[str, Any]:
        inputs = self._training_inputs(self._recipe.distill, model=self.student_path())
        inputs["teacher"] = self.identity(self.teacher_path())
        inputs |= self._in_8_bits() | self._frozen_part()
        if self._recipe.teacher.cache is not None:
            inputs["teacher_cache"] = self._recipe.teacher.cache.precision
        inputs["layer_pairs"] = [list(pair) for pair in self._settled.plan.layer_pairs]
        if self._recipe.distill.needs.filters:
            for side in ("teacher", "student"):
                inputs[f"filters_{side}"] = self._filter_files(side)
        return inputs

    def _filter_files(self, side: str) -> dict[str, Any]:
        """Size and hash of a side's learned filters."""
        phase = self.filters_phase(side)
        files = json.loads((self._output / phase / MANIFEST).read_text(encoding="utf-8"))["files"]
        place = self.filters_path(side).relative_to(self._output / phase)
        return {Path(name).name: hashed for name, hashed in files.items() if Path(name).parent == place}

    def _in_8_bits(self) -> dict[str, str]:
        """What to know of a teacher whose weights are not its files'; no other host makes a difference."""
        return {"teacher_weights": "int8"} if self._settled.in_8_bits else {}

    def _frozen_part(self) -> dict[str, bool]:
        return {"freeze_embeddings": True} if self._recipe.student.freeze_embeddings else {}
