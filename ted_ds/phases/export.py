"""The student is left as a plain transformers folder, or its adapter as peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.output.export import export_adapter, export_student
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.phases.evaluate import read_results
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import CUT_STUDENT, Phase


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    student = {"student": inputs.folders.identity_in_run(inputs.folders.distilled_path())}
    return {**student, "as": "adapter"} if inputs.folders.exports_adapter() else student


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build = kit.build

    def write(place: Path) -> dict[str, Any]:
        student, export = kit.folders.distilled_path(), export_student
        if kit.folders.exports_adapter():
            student, export = kit.folders.adapter_path(), export_adapter
        blocks = None
        if CUT_STUDENT.is_in(build.recipe):
            blocks = PhaseFolder(kit.folders.place(CUT_STUDENT), {}).result()["blocks"]
        scores = read_results(kit.folders)
        said = export(student, place, recipe=build.recipe, origins=build.origins, blocks=blocks, scores=scores)
        for warning in said:
            build.screen.say(f"{phase.name}: {warning}")
        return {"student": folder.inputs["student"]}

    kit.write(folder, write)


WORK = Work(_inputs, _run)
