"""The student is cut out of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.assembly.student_cut import cut_student
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    from_teacher = inputs.recipe.student.from_teacher
    assert from_teacher is not None
    return {"teacher": inputs.folders.identity(inputs.folders.teacher_path()), "blocks": from_teacher.as_given}


def _run(kit: Kit, _: Phase, folder: PhaseFolder) -> None:
    from_teacher = kit.build.recipe.student.from_teacher
    assert from_teacher is not None

    def write(place: Path) -> dict[str, Any]:
        cut_student(kit.build, kit.folders.teacher_path(), place / MODEL_FOLDER)
        return {"blocks": from_teacher.as_given}

    kit.write(folder, write)


WORK = Work(_inputs, _run)
