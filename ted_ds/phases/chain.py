"""The phases of a run, in order: what each one reads, trains, and leaves behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import build_stage_one, build_stage_two
from ted_ds.assembly.student_cut import cut_student
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.errors import CheckpointError
from ted_ds.models.filter_files import save_filters
from ted_ds.numerics.layer_map import layer_names
from ted_ds.objectives.finetune import FinetuneObjective
from ted_ds.output.export import export_student
from ted_ds.output.layout import MODEL_FOLDER, Layout, filters_subfolder
from ted_ds.output.phase_folder import PhaseFolder
from ted_ds.phases.training import PhaseTraining, checkpoints_of
from ted_ds.planning.pipeline_cut import FILTER_PHASES
from ted_ds.planning.plan import PLAN_OF_PHASE
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.outputs import engine_outputs, frozen_outputs
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.teacher_cache.fill import cached_teacher, retire_cache
from ted_ds.vetting.preflight import act_on, vet_knowledge, vet_quantised, vet_weights


class Chain:
    """Runs phases, skipping those that are complete."""

    def __init__(self, assembly: Assembly, layout: Layout) -> None:
        self._assembly, self._recipe, self._layout = assembly, assembly.recipe, layout
        self._output = assembly.recipe.output_dir
        self._teacher_is_vetted = False

    def pending(self, wanted: Sequence[str]) -> list[str]:
        """The wanted phases from the first that is not complete; writes nothing.

        Raises:
            CheckpointError: A phase before them is not complete, was completed or begun with other settings, or its
                place is taken.
        """
        phases = self._assembly.plan.phases
        last = max((phases.index(phase) for phase in wanted if phase in phases), default=-1)
        for index, phase in enumerate(phases[: last + 1]):
            if not self._assembly.world.on_main(functools.partial(self._is_complete, phase, wanted)):
                return [phase for phase in phases[index:] if phase in wanted]
            self._assembly.screen.say(f"{phase}: complete, skipped")
            self._retire(self._layout.folder(phase))
        return []

    def _retire(self, folder: PhaseFolder) -> None:
        """Remove what was only kept to go on with a phase that is complete: checkpoints, and the teacher's cache."""
        checkpoints = checkpoints_of(self._assembly, folder)

        def retire() -> None:
            checkpoints.retire(folder.result().get("best"))
            if folder.path.name == "distill":
                retire_cache(self._assembly)

        self._assembly.world.on_main(retire)

    def _is_complete(self, phase: str, wanted: Sequence[str]) -> bool:
        folder = self._layout.folder(phase)
        complete = folder.is_complete()
        if not complete and phase not in wanted:
            raise CheckpointError(f"{folder.path}: phase {phase} is not complete; do it first, or all: ted-ds run")
        if not complete:
            checkpoints_of(self._assembly, folder).refuse_others()
        return complete

    def vet_files(self) -> None:
        """Make sure that the weights the run starts from are weights, and quantised ones work here; writes nothing.

        Raises:
            CheckpointError: They are not.
        """
        for name, path in (("teacher", self._layout.teacher_origin), ("student", self._layout.student_origin)):
            if path is not None:
                act_on(self._assembly, vet_weights(self._assembly, name, path))
        if self._assembly.teacher_facts.quantisation is not None:
            teacher = vet_quantised(self._assembly, self._layout.teacher_origin)
            self._vet_teacher(teacher)
            teacher.release()

    def run(self, phases: Sequence[str]) -> None:
        """Run phases that are pending, in order.

        Raises:
            TedError: The same on every rank.
        """
        build = self._assembly
        for phase in phases:
            folder = build.world.on_main(functools.partial(self._layout.folder, phase))
            try:
                build.stops.has_work(False)  # until its first step
                build.stop_if_asked()
                if build.world.on_main(folder.is_complete):
                    build.screen.say(f"{phase}: complete, skipped")
                else:
                    build.screen.say(f"{phase} -> {folder.path}")
                    name = "learn_filters" if phase in FILTER_PHASES else phase
                    work: Callable[[PhaseFolder], None] = getattr(self, f"_{name}")
                    work(folder)
                    collect_garbage()
            except StopNow:
                raise build.stopped(f"in {phase}", "It has no steps to save; phases before it are complete") from None
            self._retire(folder)

    @property
    def _dim(self) -> int:
        return self._assembly.plan.filter_dim

    def _vet_teacher(self, teacher: FrozenModel | None) -> None:
        """Make sure, once a run, that the teacher has something to teach; None stands for one this stage has not."""
        if not self._teacher_is_vetted:
            models = self._assembly.models
            is_whole = all(self._assembly.world.gather(teacher is not None and teacher.tapped.share.is_whole))
            whole = teacher if is_whole else models.frozen("teacher", self._layout.teacher_path())
            assert whole is not None
            verdict = vet_knowledge(self._assembly, "teacher", whole)
            if whole is not teacher:
                whole.release()
            if verdict.status == "fail" and self._recipe.teacher.finetune is not None:  # its weights are no surprise
                verdict = replace(verdict, status="warn", detail=f"{verdict.detail} Or fine-tune it for longer")
            act_on(self._assembly, verdict)
        self._teacher_is_vetted = True

    # --- phases -----------------------------------------------------------------------------------------------------

    def _finetune_teacher(self, folder: PhaseFolder) -> None:
        assert self._recipe.teacher.finetune is not None
        self._finetune(folder, "teacher", self._recipe.teacher.finetune, self._layout.teacher_origin)

    def _finetune_student(self, folder: PhaseFolder) -> None:
        assert self._recipe.student.finetune is not None
        self._finetune(folder, "student", self._recipe.student.finetune, self._layout.student_start_path())

    def _finetune(self, folder: PhaseFolder, side: str, plan: PhasePlan, origin: Path) -> None:
        build = self._assembly
        config = build.engine_config(plan, f"{side}.finetune")
        phase = f"finetune_{side}"
        tapped = build.models.trained(side, origin, config, stage=build.stage(phase))
        with build.engine(phase, tapped, config, plan, watched=tapped.named_layers(), trained=tapped) as engine:
            training = PhaseTraining(build, folder, engine, plan, forward=engine_outputs(engine))
            result = training.run(FinetuneObjective(build.terms))
            state = build.models.whole_state(tapped)

        def write(place: Path) -> dict[str, Any]:
            build.models.save(tapped, state, place / MODEL_FOLDER)
            return result

        build.world.on_main(functools.partial(folder.write, write))

    def _cut_student(self, folder: PhaseFolder) -> None:
        from_teacher = self._recipe.student.from_teacher
        assert from_teacher is not None

        def write(place: Path) -> dict[str, Any]:
            cut_student(self._assembly, self._layout.teacher_path(), place / MODEL_FOLDER)
            return {"blocks": from_teacher.blocks}

        self._assembly.world.on_main(functools.partial(folder.write, write))

    def _learn_filters(self, folder: PhaseFolder) -> None:
        build, filters, phase = self._assembly, self._recipe.filters, folder.path.name
        assert filters is not None
        plan_path = PLAN_OF_PHASE[phase]
        plan = self._recipe.phase_plans()[plan_path]
        config = build.engine_config(plan, plan_path)
        models = {"teacher": self._layout.teacher_path(), "student": self._layout.student_path()}
        stage = build_stage_one(build, phase, models)
        if "teacher" in stage.sides:
            self._vet_teacher(stage.sides["teacher"].body)
        for one in stage.sides.values():
            build.models.drop_beyond_taps(one.body)
            build.models.share(one.body, one.probes)
        bodies = {side: one.body for side, one in stage.sides.items()}
        with build.engine(phase, stage.module, config, plan, watched=stage.watched, frozen=bodies) as engine:
            training = PhaseTraining(build, folder, engine, plan, forward=stage.outputs(engine), outputs=stage.names)
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
                save_filters(subfolder, states[side], layers=one.bank.layers, dim=self._dim, kind=filters.kind)
            return {**result, "filters": of_filter}

        build.world.on_main(functools.partial(folder.write, write))

    def _distill(self, folder: PhaseFolder) -> None:
        build, plan = self._assembly, self._recipe.distill
        config = build.engine_config(plan, "distill")
        needs = plan.needs
        filters = {side: self._layout.filters_path(side) if needs.filters else None for side in ("student", "teacher")}
        cached = cached_teacher(
            build,
            teacher=self._layout.teacher_path(),
            filters=filters["teacher"],
            depends_on={
                "teacher": folder.inputs["teacher"]["sha256"],  # wherever it is
                **{name: folder.inputs.get(name) for name in ("teacher_weights", "filters_teacher")},
            },
            vet=self._vet_teacher,
        )
        stage = build_stage_two(
            build,
            config,
            teacher=self._layout.teacher_path(),
            student=self._layout.student_path(),
            filters=filters,
            cached=cached,
        )
        if needs.teacher and cached is None:
            self._vet_teacher(stage.teacher)
        if stage.teacher is not None:
            if not needs.predictions:
                build.models.drop_beyond_taps(stage.teacher)
            build.models.share(stage.teacher, stage.module)
        with build.engine(
            "distill",
            stage.module,
            config,
            plan,
            watched=stage.watched,
            trained=stage.student,
            frozen={} if stage.teacher is None else {"teacher": stage.teacher},
        ) as engine:
            training = PhaseTraining(build, folder, engine, plan, forward=engine_outputs(engine))
            result = training.run(stage.objective)
            state = build.models.whole_state(stage.student)
            filter_state = build.models.whole_state(stage.bank)
        if stage.teacher is not None:
            stage.teacher.release()

        def write(place: Path) -> dict[str, Any]:
            build.models.save(stage.student, state, place / MODEL_FOLDER)
            if filter_state:
                save_filters(place, filter_state, layers=stage.bank.layers, dim=self._dim, kind=stage.filter_kind)
            return {**result, "teacher": self._layout.identity(self._layout.teacher_path())}

        build.world.on_main(functools.partial(folder.write, write))

    def _evaluate(self, folder: PhaseFolder) -> None:
        build = self._assembly
        results: dict[str, dict[str, float]] = {}
        for name, path in self._layout.evaluated_paths().items():
            model = build.models.frozen("teacher" if name == "teacher" else "student", path, new_head_allowed=True)
            metrics, tokens_per_s = build.evaluate(frozen_outputs(model))
            results[name] = {**metrics[0], "perf/tokens_per_s": tokens_per_s, "num_parameters": model.num_parameters}
            model.release()
            del model
            collect_garbage()
        build.rewind_tracker("evaluate", -1)
        for name, values in results.items():
            build.track("evaluate", 0, {f"{name.replace(' ', '_')}/{key}": v for key, v in values.items()})

        def write(place: Path) -> dict[str, Any]:
            (place / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            return results

        build.world.on_main(functools.partial(folder.write, write))

    def _export(self, folder: PhaseFolder) -> None:
        def write(place: Path) -> dict[str, Any]:
            student, origins = self._layout.distilled_path(), self._assembly.origins
            for warning in export_student(student, place, recipe=self._recipe, origins=origins):
                self._assembly.screen.say(f"export: {warning}")
            return {"student": folder.inputs["student"]}

        self._assembly.world.on_main(functools.partial(folder.write, write))

    # --- the end ----------------------------------------------------------------------------------------------------

    def results(self) -> dict[str, dict[str, float]] | None:
        """What the evaluation phase measured; None before it."""
        file = self._output / "evaluate" / "evaluation.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
