"""The student is cut out of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ted_ds.assembly.student_choice import choose_student
from ted_ds.assembly.student_cut import cut_student
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.cut_facts import known_blocks
from ted_ds.planning.phase import Phase

SCORES_FILE = "units.safetensors"
"""What units of the teacher were chosen by, and which were, where the student is narrower."""


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    cut, teacher = inputs.recipe.student.from_teacher, inputs.plan.teacher
    assert cut is not None
    assert teacher is not None
    origin: dict[str, Any] = {"teacher": inputs.folders.identity(inputs.folders.teacher_path())}
    known = known_blocks(cut, teacher)
    if known is not None:
        origin["blocks"] = known.get("", known)
        if not cut.widths:
            return origin
    return {**origin, **cut.deciding_values(teacher.num_blocks), **inputs.of_calibration()}


def _run(kit: Kit, _: Phase, folder: PhaseFolder) -> None:
    build, teacher = kit.build, kit.folders.teacher_path()
    choice = choose_student(build, teacher, vet=lambda model: kit.teacher.vet(model, teacher))

    def write(place: Path) -> dict[str, Any]:
        cut_student(build, teacher, place / MODEL_FOLDER, choice)
        if choice.scores:
            save_file(dict(choice.scores), place / SCORES_FILE)
        return choice.result

    kit.write(folder, write)


WORK = Work(_inputs, _run)
