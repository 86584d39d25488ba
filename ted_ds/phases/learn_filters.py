"""Stage I: filters are learned on a frozen model, or on both in one pass; those that are solved may be learned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ted_ds.assembly.solved_filters import solve_filters
from ted_ds.assembly.stages import build_stage_one
from ted_ds.models.filter_files import save_filters
from ted_ds.numerics.filters import FilterBank
from ted_ds.numerics.layer_map import layer_names
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import RunFolders, filters_subfolder
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.training import KEPT, PhaseTraining, checkpoints_of
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import Phase, training_of
from ted_ds.planning.ridge_filters import are_solved, solves_towards_teacher
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.vetting.filters import vet_filters

Scores = dict[str, dict[str, dict[str, float]]]
"""Held-out metrics, by side and the name of a filter's layer."""


@dataclass
class _Learned:
    """What a phase leaves."""

    states: Mapping[str, dict[str, Tensor]]
    """The weights of each side's filters, on rank 0."""
    scores: Scores
    result: dict[str, Any] = field(default_factory=dict)
    """What else is reported."""


def _models(folders: RunFolders, phase: Phase, recipe: Any) -> dict[str, Path]:
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
        **(inputs.in_8_bits() if "teacher" in models else {}),
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
    solved: dict[str, FilterBank] = {}
    about: dict[str, Any] | None = None
    if are_solved(build.recipe):
        # its checkpoint has the filters as they have been learned since
        saved = checkpoints_of(build, folder).newest()
        if saved is None:
            solved, about = _solve(kit, phase)
        else:
            about = saved.state[KEPT]
    if training_of(build.recipe, phase).steps:
        learned = _train(kit, phase, folder, solved, about)
    else:
        assert about is not None
        learned = _Learned(
            {side: dict(bank.state_dict()) for side, bank in solved.items()}, {side: _scores(of) for side, of in about}
        )

    def write(place: Path) -> dict[str, Any]:
        for side, state in learned.states.items():
            subfolder = place / filters_subfolder(phase, side)
            subfolder.mkdir(exist_ok=True)
            layers, dim = build.layers(side), build.plan.filter_dim
            save_filters(subfolder, state, layers=layers, dim=dim, kind=filters.kind)
        return {**learned.result, "filters": learned.scores, **({} if about is None else {"solved": about})}

    kit.write(folder, write)
    vet_filters(build, phase, folder.result_of_all(build.world))


WORK = Work(_inputs, _run)
