"""The student that was cut out of the teacher is healed: its blocks are brought to the teacher's states, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.calibration import open_calibration
from ted_ds.assembly.healing import Healed, Healer
from ted_ds.models.output_maps import output_map_of
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.run_folders import MODEL_FOLDER
from ted_ds.phases.checkpoints import CHECKPOINTS_FOLDER
from ted_ds.phases.healed_blocks import HealedBlocks
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.heal import heal_targets
from ted_ds.planning.phase import CUT_STUDENT, HEAL_STUDENT, Phase
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.outputs import frozen_outputs
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import gathered


def _inputs(inputs: Inputs, _: Phase) -> dict[str, Any]:
    heal = inputs.recipe.student.heal
    assert heal is not None
    return {
        "teacher": inputs.folders.identity(inputs.folders.teacher_path()),
        "student": inputs.folders.identity(inputs.folders.student_begun_path()),
        "heal": heal.deciding_values(),
        **(inputs.recipe_values("layer_map") if heal.towards == "layer_map" else {}),
        **inputs.of_calibration(),
    }


def _run(kit: Kit, phase: Phase, folder: PhaseFolder) -> None:
    build, folders = kit.build, kit.folders
    heal = build.recipe.student.heal
    assert heal is not None
    blocks = build.world.on_main(lambda: PhaseFolder(folders.place(CUT_STUDENT), {}).result()["blocks"])
    targets = heal_targets(build.recipe, build.teacher_facts, build.student_facts, blocks)
    calibration = open_calibration(build)
    student = build.models.frozen("student", folders.student_begun_path(), new_head_allowed=True, compiles=False)
    done = HealedBlocks(build, folder)
    reports, weights = done.read()
    scores = {"before": reports[0]["scores"]} if reports else {"before": _score(build, student)}
    if reports:
        build.screen.say(f"  going on behind block {len(reports) - 1} of {len(blocks)}, from {done.place}")
        _put(student, weights)
    teacher = _teacher(kit, max(targets.values(), default=0))
    kit.journal.rewind(phase.name, len(reports) or -1)
    if not reports:
        kit.journal.track(phase.name, 0, {f"eval/{name}": value for name, value in scores["before"].items()})
    build.screen.say(
        f"  {calibration.num_tokens:,} tokens to fit and {calibration.num_heldout_tokens:,} held out, of "
        f"data.train; {len(targets)} of {len(blocks)} blocks have a state to come to"
    )
    healer = Healer(build, teacher, student, calibration, targets=targets, strengths=heal.strengths)
    build.stops.has_work(True)
    try:
        healer.skip(len(reports))
        for number in range(len(reports), len(blocks)):
            healed = healer.heal(number)
            report = {"scores": scores["before"], "healed": None if healed is None else asdict(healed)}
            reports.append(report)
            done.add(number + 1, report, _changed(student, number, healed))
            build.screen.say(f"  {healed or f'block {number} is left as it is'}")
            kit.journal.track(phase.name, number + 1, dict(_numbers(healed)))
    except StopNow:
        behind = f"behind block {len(reports) - 1} of {len(blocks)}" if reports else "before its first block"
        raise build.stopped(f"in {phase.name}, {behind}", f"What is healed is in {done.place}") from None
    teacher.release()
    scores["after"] = _score(build, student)
    kit.journal.track(phase.name, len(blocks), {f"eval/{name}": value for name, value in scores["after"].items()})
    metric = build.kind.headline
    build.screen.say(f"  held-out {metric}: {scores['before'][metric]:.4g} -> {scores['after'][metric]:.4g}")
    state = build.models.whole_state(student.tapped)

    def write(place: Path) -> dict[str, Any]:
        build.models.save("student", student.tapped, state, place / MODEL_FOLDER)
        return {"blocks": [one["healed"] for one in reports], "scores": scores}

    kit.write(folder, write)
    student.release()


def _teacher(kit: Kit, last_layer: int) -> FrozenModel:
    """The teacher, as far up as it is needed; without a method that has one, its states alone count."""
    build, path, teaches = kit.build, kit.folders.teacher_path(), kit.build.recipe.distill.needs.teacher
    teacher = build.models.frozen("teacher", path, (last_layer,), new_head_allowed=not teaches, compiles=False)
    if teaches:
        kit.teacher.vet(teacher, path)
    build.models.drop_beyond_taps(teacher)
    return teacher


def _score(build: Assembly, student: FrozenModel) -> dict[str, float]:
    """The student's held-out metrics."""
    (metrics,), _ = build.evaluate(frozen_outputs(student))
    return metrics


def _numbers(healed: Healed | None) -> Iterator[tuple[str, float]]:
    """What is tracked of a block."""
    if healed is None:
        return
    yield "heal/relative_error_before", healed.error_before
    yield "heal/relative_error_after", healed.error_after
    if healed.strength is not None:
        yield "heal/strength", healed.strength
    if healed.condition is not None:
        yield "heal/condition", healed.condition


def _changed(student: FrozenModel, number: int, healed: Healed | None) -> dict[str, Tensor]:
    """The weights of a block that healing may have changed, by their names in the model, on the host."""
    own = output_map_of(student.tapped.model, student.tapped.family, number)
    found = {}
    for name, parameter in ({} if healed is None or own is None else own.named_in(student.tapped.model)).items():
        with gathered([parameter]):
            found[name] = parameter.detach().to("cpu", copy=True)
    return found


@torch.no_grad()
def _put(student: FrozenModel, weights: dict[str, Tensor]) -> None:
    """Give a student what was healed before."""
    parameters = dict(student.tapped.model.named_parameters())
    for name, weight in weights.items():
        with gathered([parameters[name]], for_writing=True):
            parameters[name].copy_(weight)


def _retire(build: Assembly) -> None:
    """Remove what is kept block by block, whatever of training's checkpoints is kept for good."""
    shutil.rmtree(build.recipe.output_dir / CHECKPOINTS_FOLDER / HEAL_STUDENT.name, ignore_errors=True)


WORK = Work(_inputs, _run, retire=_retire)
