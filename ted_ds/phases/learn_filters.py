"""Stage I: filters are learned on a frozen model, or on both in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.assembly.stages import build_stage_one
from ted_ds.models.filter_files import save_filters
from ted_ds.numerics.layer_map import layer_names
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import RunFolders, filters_subfolder
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.training import PhaseTraining
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase, training_of


def _models(folders: RunFolders, phase: Phase) -> dict[str, Path]:
    """The models it has, by side."""
    paths = {"teacher": folders.teacher_path, "student": folders.student_path}
    return {side: paths[side]() for side in phase.frozen}


def _inputs(inputs: Inputs, phase: Phase) -> dict[str, Any]:
    filters = inputs.recipe.filters
    assert filters is not None
    shape = filters.model_dump(mode="json", include={"kind", "initialisation", "lm_head", "pooling"})
    layers = {side: list(inputs.plan.layers(side)) for side in phase.frozen}
    return {
        **inputs.of_training(phase, **_models(inputs.folders, phase)),
        "filters": {**shape, "layers": layers, "dim": inputs.plan.filter_dim},
        **(inputs.in_8_bits() if "teacher" in phase.frozen else {}),
    }


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build, filters = kit.build, kit.build.recipe.filters
    assert filters is not None
    assert phase.plan_path is not None
    plan, models = training_of(build.recipe, phase), _models(kit.folders, phase)
    config = build.engine_config(plan, phase.plan_path)
    stage = build_stage_one(build, phase.name, models)
    if "teacher" in stage.sides:
        kit.teacher.vet(stage.sides["teacher"].body, models["teacher"])
    for one in stage.sides.values():
        build.models.drop_beyond_taps(one.body)
        build.models.share(one.body, one.probes)
    bodies = {side: one.body for side, one in stage.sides.items()}
    with build.engine(phase.name, stage.module, config, plan, watched=stage.watched, frozen=bodies) as engine:
        training = PhaseTraining(kit, folder, engine, plan, forward=stage.outputs(engine), outputs=stage.names)
        result = training.run(stage.objective)
        states = {side: build.models.whole_state(one.bank) for side, one in stage.sides.items()}
    for body in bodies.values():
        body.release()
    scores = iter(training.scores)
    of_filter = {
        side: {name: next(scores) for name in layer_names(one.bank.layers)} for side, one in stage.sides.items()
    }

    def write(place: Path) -> dict[str, Any]:
        for side, one in stage.sides.items():
            subfolder = place / filters_subfolder(phase, side)
            subfolder.mkdir(exist_ok=True)
            dim = build.plan.filter_dim
            save_filters(subfolder, states[side], layers=one.bank.layers, dim=dim, kind=filters.kind)
        return {**result, "filters": of_filter}

    kit.write(folder, write)


WORK = Work(_inputs, _run)
