"""Stage II: the student learns from the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.shared_prefix import share_prefix
from ted_ds.assembly.stages import build_stage_two
from ted_ds.errors import DataError
from ted_ds.models.filter_files import save_filters
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import ADAPTER_FOLDER, MODEL_FOLDER
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.training import PhaseTraining
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.adapters import teaches_itself
from ted_ds.planning.phase import Phase
from ted_ds.runtime.outputs import engine_outputs
from ted_ds.runtime.teacher import Teacher
from ted_ds.teacher_cache.fill import cached_teacher, retire_cache
from ted_ds.teacher_cache.plan import plan_cache, refuse_useless_cache
from ted_ds.vetting.filters import vet_learned
from ted_ds.vetting.preflight import act_on


def _inputs(inputs: Inputs, phase: Phase) -> dict[str, Any]:
    recipe, folders = inputs.recipe, inputs.folders
    found = inputs.of_training(phase, model=folders.student_path())
    found["teacher"] = folders.identity(folders.teacher_path())
    found |= inputs.fewer_bits() | inputs.frozen_part() | inputs.dropout_part("student") | inputs.transfer()
    found |= inputs.own_of_stage_two()
    if recipe.teacher.cache is not None:
        found["teacher_cache"] = recipe.teacher.cache.deciding_values(recipe.task, recipe.distill)
    found["layer_pairs"] = [list(pair) for pair in inputs.plan.layer_pairs]
    if recipe.distill.needs.filters:
        for side in ("teacher", "student"):
            found[f"filters_{side}"] = inputs.filter_files(side)
    return found


def _announce(build: Assembly) -> None:
    """Say what the teacher's cache will take, or refuse it."""
    with build.world.together():
        refuse_useless_cache(build)
    expected = plan_cache(build)
    if expected is None:
        return
    build.screen.say(str(expected))
    doubt = None if expected.rows is None else build.world.on_main(expected.rows.look)
    if doubt is not None and build.recipe.preflight == "refuse":
        error = DataError(f"{doubt}; preflight: warn trains all the same")
        error.agreed = True
        raise error
    if doubt is not None:
        build.screen.say(f"WARN {doubt}")


def _refuse_useless_filters(kit: Kit) -> None:
    """Stage I, which warns of them, may have been done with ``preflight: warn``, or refused them in another start.

    Raises:
        CheckpointError: Filters are below guessing, and ``preflight`` is ``refuse``; on every rank.
    """
    build, folders = kit.build, kit.folders
    for side in ("teacher", "student"):
        of_phase = PhaseFolder(folders.place(folders.filters_phase(side)), {})
        verdict = vet_learned(build, side, build.world.on_main(of_phase.result))
        if verdict.status == "fail" and build.recipe.preflight == "refuse":
            act_on(build, verdict)


def teacher_from_cache(kit: Kit, folder: PhaseFolder) -> Teacher | None:
    """The teacher as a cache has it, which is filled first where it is not there; None where the recipe has none.

    Every rank must call it, once what is before Stage II is complete.

    Raises:
        StopNow: Any rank was asked to stop while it was filled; on every rank.
        TedError: The cache cannot be written or read, or the filters are of no use; on every rank.
    """
    folders, needs, teacher = kit.folders, kit.build.recipe.distill.needs, kit.folders.teacher_path()
    if needs.filters:
        _refuse_useless_filters(kit)
    return cached_teacher(
        kit.build,
        teacher=teacher,
        filters=folders.filters_path("teacher") if needs.filters else None,
        depends_on={
            "teacher": folder.inputs["teacher"]["sha256"],  # wherever it is
            **{name: folder.inputs.get(name) for name in ("teacher_weights", "filters_teacher")},
            # of caches from before there was such a thing nothing is said
            **{name: folder.inputs[name] for name in ("teacher_precision",) if name in folder.inputs},
        },
        vet=lambda model: kit.teacher.vet(model, teacher),
    )


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build, folders, plan = kit.build, kit.folders, kit.build.recipe.distill
    assert phase.plan_path is not None
    config = build.engine_config(plan, phase.plan_path)
    needs = plan.needs
    filters = {side: folders.filters_path(side) if needs.filters else None for side in ("student", "teacher")}
    teacher = folders.teacher_path()
    cached = teacher_from_cache(kit, folder)
    by_base = teaches_itself(build.recipe) and build.hosting.host != "int8"
    if by_base:
        kit.teacher.vet(None, teacher)
        build.screen.say("  the teacher is the student's own base, its adapters off: its weights are held once")
    stage = build_stage_two(
        build,
        config,
        teacher=None if by_base else teacher,
        student=folders.student_path(),
        filters=filters,
        cached=cached,
    )
    if needs.teacher and cached is None and not by_base:
        kit.teacher.vet(stage.teacher, teacher)
    if stage.teacher is not None:
        if not (needs.predictions or needs.relations):
            build.models.drop_beyond_taps(stage.teacher)
        share_prefix(build, stage)
        build.models.share(stage.teacher, stage.module)
    with build.engine(
        phase.name,
        stage.module,
        config,
        plan,
        watched=stage.watched,
        trained=stage.student,
        frozen={} if stage.teacher is None else {"teacher": stage.teacher},
    ) as engine:
        training = PhaseTraining(kit, folder, engine, plan, forward=engine_outputs(engine))
        result = training.run(stage.objective)
        state = build.models.whole_state(stage.student)
        filter_state = build.models.whole_state(stage.bank)
    if stage.teacher is not None:
        stage.teacher.release()

    def write(place: Path) -> dict[str, Any]:
        build.models.save("student", stage.student, state, place / MODEL_FOLDER)
        if build.recipe.student.lora is not None:
            build.models.save_adapters(stage.student, state, place / ADAPTER_FOLDER)
        if filter_state:
            dim = build.plan.filter_dim
            save_filters(place, filter_state, layers=stage.bank.layers, dim=dim, kind=stage.filter_kind)
        return {**result, "teacher": folders.identity(teacher)}

    kit.write(folder, write)


WORK = Work(_inputs, _run, announce=_announce, retire=retire_cache)
