"""Stage 0: teacher or student is trained on the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import MODEL_FOLDER, RunFolders
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.training import PhaseTraining
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase, training_of
from ted_ds.runtime.outputs import engine_outputs


def _start(folders: RunFolders, phase: Phase) -> Path:
    """The model to begin with."""
    return folders.teacher_origin if phase.trains == "teacher" else folders.student_start_path()


def _inputs(inputs: Inputs, phase: Phase) -> dict[str, Any]:
    assert phase.trains is not None
    return {
        **inputs.of_training(phase, model=_start(inputs.folders, phase)),
        **(inputs.frozen_part() if phase.trains == "student" else {}),
        **inputs.dropout_part(phase.trains),
    }


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    side = phase.trains
    assert side is not None
    assert phase.plan_path is not None
    build, plan = kit.build, training_of(kit.build.recipe, phase)
    config = build.engine_config(plan, phase.plan_path)
    tapped = build.models.trained(side, _start(kit.folders, phase), config, stage=build.stage(phase.name))
    with build.engine(phase.name, tapped, config, plan, watched=tapped.named_layers(), trained=tapped) as engine:
        training = PhaseTraining(kit, folder, engine, plan, forward=engine_outputs(engine))
        result = training.run(FinetuneObjective(build.terms_to_train(side)))
        state = build.models.whole_state(tapped)

    def write(place: Path) -> dict[str, Any]:
        build.models.save(side, tapped, state, place / MODEL_FOLDER)
        return result

    kit.write(folder, write)


WORK = Work(_inputs, _run)
