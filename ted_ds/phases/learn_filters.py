"""Stage I: filters are learned on a frozen model, or on both in one pass; those that are solved may be learned on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ted_ds.assembly.solved_filters import solve_filters
from ted_ds.assembly.stages import build_stage_one
from ted_ds.config.schema import Recipe
from ted_ds.models.filter_files import save_filters
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.layer_map import layer_names
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import RunFolders, filters_subfolder
from ted_ds.phases.checkpoints import checkpoints_of
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.training import KEPT, PhaseTraining
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase, training_of
from ted_ds.planning.ridge_filters import are_solved, solves_towards_teacher
from ted_ds.vetting.filters import vet_learned
from ted_ds.vetting.preflight import act_on


def _models(folders: RunFolders, phase: Phase, recipe: Recipe) -> dict[str, Path]:
    """The models it reads, by side."""
    paths = {"teacher": folders.teacher_path, "student": folders.student_path}
    with_teacher = solves_towards_teacher(recipe, phase)
    return {side: paths[side]() for side in paths if side in phase.frozen or (with_teacher and side == "teacher")}


def _inputs(inputs: Inputs, phase: Phase) -> dict[str, Any]:
    filters = inputs.recipe.filters
    assert filters is not None
    shape = filters.model_dump(mode="json", include={"kind", "initialisation", "lm_head", "pooling"})
    layers = {side: list(inputs.plan.layers(side)) for side in phase.frozen}
    models = _models(inputs.folders, phase, inputs.recipe)
    return {
        **inputs.of_training(phase, **models),
        "filters": {**shape, "layers": layers, "dim": inputs.plan.filter_dim},
        **(inputs.fewer_bits() if "teacher" in models else {}),
        **(_of_solving(inputs, phase) if are_solved(inputs.recipe) else {}),
    }


def _of_solving(inputs: Inputs, phase: Phase) -> dict[str, Any]:
    """What decides filters that are solved."""
    filters = inputs.recipe.filters
    assert filters is not None
    found: dict[str, Any] = {
        "ridge": filters.ridge.model_dump(mode="json"),
        "calibration": inputs.recipe.student.calibration.deciding_values(),
    }
    if solves_towards_teacher(inputs.recipe, phase) and "teacher" not in phase.frozen:
        found["filters_teacher"] = inputs.filter_files("teacher")
        found["layer_pairs"] = [list(pair) for pair in inputs.plan.layer_pairs]
    return found


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build, filters = kit.build, kit.build.recipe.filters
    assert filters is not None
    banks: dict[str, FilterBank] = {}
    solved: dict[str, Any] | None = None
    if are_solved(build.recipe):
        saved = checkpoints_of(build, folder).newest()
        if saved is None:
            banks, solved = _solve(kit, phase)
        else:  # it has the filters as they have been learned since
            solved = saved.state[KEPT]
    if training_of(build.recipe, phase).steps:
        states, result = _learn(kit, phase, folder, banks, solved)
    else:
        assert solved is not None
        states = {side: dict(bank.state_dict()) for side, bank in banks.items()}
        result = {"filters": {side: {name: one["scores"] for name, one in of.items()} for side, of in solved.items()}}
    if solved is not None:
        result["solved"] = solved

    def write(place: Path) -> dict[str, Any]:
        for side, state in states.items():
            subfolder = place / filters_subfolder(phase, side)
            subfolder.mkdir(exist_ok=True)
            layers, dim = build.layers(side), build.plan.filter_dim
            save_filters(subfolder, state, layers=layers, dim=dim, kind=filters.kind)
        return result

    kit.write(folder, write)
    for side in phase.frozen:
        act_on(build, vet_learned(build, side, result))


def _solve(kit: Kit, phase: Phase) -> tuple[dict[str, FilterBank], dict[str, Any]]:
    """Filters by side, and what is kept of how they were solved."""
    build, folders = kit.build, kit.folders
    models = _models(folders, phase, build.recipe)
    learned_before = "teacher" in models and "teacher" not in phase.frozen
    found = solve_filters(
        build,
        phase,
        models,
        teacher_filters=folders.filters_path("teacher") if learned_before else None,
        vet=lambda model: kit.teacher.vet(model, models["teacher"]),
    )
    return {side: one.bank for side, one in found.items()}, {side: one.about for side, one in found.items()}


def _learn(
    kit: Kit, phase: Phase, folder: PhaseFolder, banks: Mapping[str, FilterBank], solved: dict[str, Any] | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Train the filters from those given, or from fresh ones; their weights by side, and what is reported."""
    build, models = kit.build, _models(kit.folders, phase, kit.build.recipe)
    assert phase.plan_path is not None
    plan = training_of(build.recipe, phase)
    config = build.engine_config(plan, phase.plan_path)
    stage = build_stage_one(build, phase.name, models, solved=banks)
    if "teacher" in stage.sides:
        kit.teacher.vet(stage.sides["teacher"].body, models["teacher"])
    for one in stage.sides.values():
        build.models.drop_beyond_taps(one.body)
        build.models.share(one.body, one.probes)
    bodies = {side: one.body for side, one in stage.sides.items()}
    with build.engine(phase.name, stage.module, config, plan, watched=stage.watched, frozen=bodies) as engine:
        training = PhaseTraining(
            kit, folder, engine, plan, forward=stage.outputs(engine), outputs=stage.names, kept=solved
        )
        result = training.run(stage.objective)
        states = {side: build.models.whole_state(one.bank) for side, one in stage.sides.items()}
    for body in bodies.values():
        body.release()
    scores = iter(training.scores)
    of_filter = {
        side: {name: next(scores) for name in layer_names(one.bank.layers)} for side, one in stage.sides.items()
    }
    return states, {**result, "filters": of_filter}


WORK = Work(_inputs, _run)
