"""The student begins with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.assembly.student_random import make_random_student
from ted_ds.models.folder import read_config
from ted_ds.models.local_paths import without_local_paths
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase
from ted_ds.planning.student_facts import config_folder


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    from_config = inputs.recipe.student.from_config
    folder = config_folder(inputs.recipe, inputs.folders.teacher_origin)
    assert from_config is not None
    assert folder is not None
    return {
        "config": without_local_paths(read_config(folder)),
        "changes": from_config.changes,
        "architecture": inputs.recipe.task.architecture,
        "outputs": inputs.recipe.task.output_names,
        "seed": inputs.recipe.seed,
        "precision": inputs.recipe.precision,
    }


def _run(kit: Kit, _: Phase, folder: PhaseFolder) -> None:
    def write(place: Path) -> dict[str, Any]:
        make_random_student(kit.build, place / MODEL_FOLDER)
        return {"parameters": kit.build.student_facts.parameters.total}

    kit.write(folder, write)


WORK = Work(_inputs, _run)
