"""The phases of a run, in order: those that are complete are skipped, the others done."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from ted_ds.assembly.assembly import Assembly
from ted_ds.errors import CheckpointError
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.output.screen import duration
from ted_ds.output.shared_phases import SharedPhases
from ted_ds.phases import (
    cut_student,
    distill,
    evaluate,
    export,
    finetune,
    heal_student,
    learn_filters,
    lm_eval_tasks,
    random_student,
)
from ted_ds.phases.callbacks import Listeners, PhaseEvent
from ted_ds.phases.checkpoints import checkpoints_of
from ted_ds.phases.inputs import Inputs
from ted_ds.phases.journal import Journal
from ted_ds.phases.stored_phases import StoredPhases
from ted_ds.phases.work import Kit, Work
from ted_ds.planning.phase import (
    CUT_STUDENT,
    DISTILL,
    EVALUATE,
    EXPORT,
    FILTERS_BOTH,
    FILTERS_STUDENT,
    FILTERS_TEACHER,
    FINETUNE_STUDENT,
    FINETUNE_TEACHER,
    HEAL_STUDENT,
    LM_EVAL,
    RANDOM_STUDENT,
    Phase,
    phases_of,
)
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.vetting.preflight import act_on, vet_quantised, vet_weights
from ted_ds.vetting.teacher import TeacherVetting

LOOK_EVERY_S = 1.0
"""For a phase that another run is at."""
WORK_OF_PHASE: Mapping[Phase, Work] = {
    FINETUNE_TEACHER: finetune.WORK,
    CUT_STUDENT: cut_student.WORK,
    RANDOM_STUDENT: random_student.WORK,
    HEAL_STUDENT: heal_student.WORK,
    FINETUNE_STUDENT: finetune.WORK,
    FILTERS_TEACHER: learn_filters.WORK,
    FILTERS_STUDENT: learn_filters.WORK,
    FILTERS_BOTH: learn_filters.WORK,
    DISTILL: distill.WORK,
    EVALUATE: evaluate.WORK,
    EXPORT: export.WORK,
    LM_EVAL: lm_eval_tasks.WORK,
}


def phase_folder(inputs: Inputs, phase: Phase) -> PhaseFolder:
    """Where a phase puts its result, and what that depends on."""
    return PhaseFolder(inputs.folders.place(phase), WORK_OF_PHASE[phase].inputs(inputs, phase))


class Chain:
    """Runs phases, skipping those that are complete."""

    def __init__(self, assembly: Assembly, inputs: Inputs, journal: Journal, listeners: Listeners) -> None:
        self._assembly, self._inputs = assembly, inputs
        self._kit = Kit(assembly, inputs.folders, journal, TeacherVetting(assembly), listeners)
        shared = assembly.recipe.shared_phases
        self._shared = None if shared is None else SharedPhases(shared)
        self._stored = StoredPhases(assembly)
        self.took_s: dict[str, float | None] = {}
        """Seconds of each phase that is complete; None where it was so before."""

    def pending(self, wanted: Sequence[Phase]) -> list[Phase]:
        """The wanted phases from the first that is not complete; writes nothing but what it fetches from a store.

        Raises:
            CheckpointError: A phase before them is not complete, was completed or begun with other settings, or its
                place is taken.
        """
        phases = phases_of(self._assembly.recipe)
        last = max((phases.index(phase) for phase in wanted if phase in phases), default=-1)
        for index, phase in enumerate(phases[: last + 1]):
            folder = self._folder(phase)
            self._stored.fetch(folder)
            if not self._assembly.world.on_main(functools.partial(self._is_complete, phase, folder, wanted)):
                return [phase for phase in phases[index:] if phase in wanted]
            self._skip(phase, folder)
            self._retire(phase, folder)
        return []

    def _folder(self, phase: Phase) -> PhaseFolder:
        return self._assembly.world.on_main(functools.partial(phase_folder, self._inputs, phase))

    def _retire(self, phase: Phase, folder: PhaseFolder) -> None:
        """Remove what was only kept to go on with a phase that is complete: checkpoints, and what it names."""
        checkpoints = checkpoints_of(self._assembly, folder)

        def retire() -> None:
            checkpoints.retire(folder.result().get("best"))
            WORK_OF_PHASE[phase].retire(self._assembly)

        self._assembly.world.on_main(retire)
        self._stored.offer(folder)

    def finish_uploads(self) -> None:
        """Wait until the results of all phases are at the store, if there is one.

        Raises:
            StoreError: Some are not; on every rank.
        """
        self._stored.finish()

    def _is_complete(self, phase: Phase, folder: PhaseFolder, wanted: Sequence[Phase]) -> bool:
        complete = folder.is_complete()
        if not complete and phase not in wanted:
            raise CheckpointError(f"{folder.path}: phase {phase.name} is not complete; do it first, or all: ted-ds run")
        if not complete:
            checkpoints_of(self._assembly, folder).refuse_others()
        return complete

    def announce(self, phases: Sequence[Phase]) -> None:
        """Let pending phases say what they will take, or refuse it; writes nothing. Every rank must call it.

        Raises:
            TedError: One of them cannot work; on every rank.
        """
        for phase in phases:
            WORK_OF_PHASE[phase].announce(self._assembly)

    def vet_files(self) -> None:
        """Make sure that the weights the run starts from are weights, and quantised ones work here; writes nothing.

        Raises:
            CheckpointError: They are not.
        """
        folders = self._inputs.folders
        for name, path in (("teacher", folders.teacher_origin), ("student", folders.student_origin)):
            if path is not None:
                act_on(self._assembly, vet_weights(self._assembly, name, path))
        if self._assembly.teacher_facts.quantisation is not None and self._assembly.readers.has("teacher"):
            teacher = vet_quantised(self._assembly, folders.teacher_origin)
            self._kit.teacher.vet(teacher, folders.teacher_origin)
            teacher.release()

    def run(self, phases: Sequence[Phase]) -> None:
        """Run phases that are pending, in order.

        Raises:
            TedError: The same on every rank.
        """
        build = self._assembly
        for phase in phases:
            folder = self._folder(phase)
            try:
                build.stops.has_work(False)  # until its first step
                build.stop_if_asked()
                if build.world.on_main(folder.is_complete):
                    self._skip(phase, folder)
                elif self._shared is not None and phase.is_of_a_stage:
                    self._do_or_take(phase, folder, self._shared)
                else:
                    self._do(phase, folder)
            except StopNow:
                raise build.stopped(
                    f"in {phase.name}", "It has no steps to save; phases before it are complete"
                ) from None
            self._retire(phase, folder)

    def fill_cache(self) -> None:
        """Keep what the teacher says in Stage II on the disk, once what is before that is complete.

        Raises:
            TedError: The same on every rank.
        """
        build = self._assembly
        try:
            distill.teacher_from_cache(self._kit, self._folder(DISTILL))
        except StopNow:
            raise build.stopped("while the teacher's cache was filled", "What is written of it stays") from None

    def _skip(self, phase: Phase, folder: PhaseFolder) -> None:
        self._assembly.screen.say(f"{phase.name}: complete, skipped")
        self._was_there(phase, folder)

    def _was_there(self, phase: Phase, folder: PhaseFolder) -> None:
        self.took_s[phase.name] = None
        self._tell(phase, "skipped", folder)

    def _tell(self, phase: Phase, state: Literal["begins", "ends", "skipped"], folder: PhaseFolder) -> None:
        self._kit.listeners.tell(PhaseEvent(phase=phase.name, state=state, folder=folder.path))

    def _do(self, phase: Phase, folder: PhaseFolder) -> None:
        screen, started = self._assembly.screen, time.monotonic()
        screen.say(f"{phase.name} -> {folder.path}")
        self._tell(phase, "begins", folder)
        WORK_OF_PHASE[phase].run(self._kit, phase, folder)
        collect_garbage()
        self.took_s[phase.name] = took = time.monotonic() - started
        phases = phases_of(self._assembly.recipe)
        screen.say(f"{screen.tick} {phase.name}: {duration(took)} ({phases.index(phase) + 1} of {len(phases)})")
        self._tell(phase, "ends", folder)

    def _do_or_take(self, phase: Phase, folder: PhaseFolder, shared: SharedPhases) -> None:
        """Take what another run has done, wait for one that is at it, or do it and let others have it."""
        build, is_said = self._assembly, False
        while (claim := build.world.on_main(functools.partial(shared.claim, folder))) == "wait":
            if not is_said:
                build.screen.say(f"{phase.name}: waiting for another run that is at it ({shared.place(folder)})")
            is_said = True
            time.sleep(LOOK_EVERY_S)
            build.stop_if_asked()
        if claim == "taken":
            build.screen.say(f"{phase.name}: complete in another run, taken from {shared.place(folder)}")
            self._was_there(phase, folder)
            return
        try:
            self._do(phase, folder)
            build.world.on_main(functools.partial(shared.give, folder))
        finally:
            if build.world.is_main:
                shared.release(folder)
