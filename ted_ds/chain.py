"""The phases of a run, in order: what each one reads, trains, and leaves behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ted_ds.assemble import Assembly
from ted_ds.assemble_stages import build_stage_one, build_stage_two
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import PhasePlan
from ted_ds.config.tasks import CausalLm
from ted_ds.errors import CheckpointError
from ted_ds.export import export_student
from ted_ds.models.cutting import cut
from ted_ds.models.families import family_of
from ted_ds.models.filter_files import save_filters
from ted_ds.phases import PhaseFolder, model_identity
from ted_ds.preflight import act_on, vet_knowledge, vet_weights
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.outputs import engine_outputs, frozen_outputs, probe_outputs
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.sharding import collect_garbage
from ted_ds.stages.finetune import FinetuneObjective
from ted_ds.train_phase import PhaseTraining, checkpoints_of

MODEL_FOLDER = "model"
UNDECIDING_DATA_KEYS = {"padding", "workers", "bad_records"}
"""What may change in ``data`` without a change in results."""


class Chain:
    """Runs phases, skipping those that are complete."""

    def __init__(self, assembly: Assembly, *, teacher: Path, student: Path | None) -> None:
        """Start from the teacher's folder and the student's (None where it is cut from the teacher)."""
        self._assembly, self._recipe = assembly, assembly.recipe
        self._output = assembly.recipe.output_dir
        self.teacher_origin, self._student_origin = teacher, student
        self._identities: dict[Path, dict[str, str]] = {}
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
            self._retire_checkpoints(self.folder(phase))
        return []

    def _retire_checkpoints(self, folder: PhaseFolder) -> None:
        """Remove the checkpoints of a complete phase that were only kept to go on."""
        checkpoints = checkpoints_of(self._assembly, folder)
        self._assembly.world.on_main(lambda: checkpoints.retire(folder.result().get("best")))

    def _is_complete(self, phase: str, wanted: Sequence[str]) -> bool:
        folder = self.folder(phase)
        complete = folder.is_complete()
        if not complete and phase not in wanted:
            raise CheckpointError(f"{folder.path}: phase {phase} is not complete; do it first, or all: ted-ds run")
        if not complete:
            checkpoints_of(self._assembly, folder).refuse_others()
        return complete

    def vet_files(self) -> None:
        """Make sure that the weights the run starts from are weights; writes nothing.

        Raises:
            CheckpointError: They are not.
        """
        for name, path in (("teacher", self.teacher_origin), ("student", self._student_origin)):
            if path is not None:
                act_on(self._assembly, vet_weights(self._assembly, name, path))

    def run(self, phases: Sequence[str]) -> None:
        """Run phases that are pending, in order.

        Raises:
            TedError: The same on every rank.
        """
        build = self._assembly
        for phase in phases:
            folder = build.world.on_main(functools.partial(self.folder, phase))
            try:
                build.stop_if_asked()
                if build.world.on_main(folder.is_complete):
                    build.screen.say(f"{phase}: complete, skipped")
                else:
                    build.screen.say(f"{phase} -> {folder.path}")
                    work: Callable[[PhaseFolder], None] = getattr(self, f"_{phase}")
                    work(folder)
                    collect_garbage()
            except StopNow:
                raise build.stopped(f"in {phase}", "It has no steps to save; phases before it are complete") from None
            self._retire_checkpoints(folder)

    # --- where things are -----------------------------------------------------------------------------------------

    def folder(self, phase: str) -> PhaseFolder:
        """Where a phase puts its result, and what that depends on."""
        inputs: dict[str, Callable[[], dict[str, Any]]] = {
            "finetune_teacher": lambda: self._training_inputs(self._recipe.teacher.finetune, self.teacher_origin),
            "cut_student": lambda: {
                "teacher": self._identity(self.teacher_path()),
                "blocks": self._recipe.student.from_teacher and self._recipe.student.from_teacher.blocks,
            },
            "finetune_student": lambda: {
                **self._training_inputs(self._recipe.student.finetune, self.student_start_path()),
                **self._frozen_part(),
            },
            "filters_teacher": lambda: self._filter_inputs("teacher", self.teacher_path()),
            "filters_student": lambda: self._filter_inputs("student", self.student_path()),
            "distill": self._distill_inputs,
            "evaluate": lambda: {
                "models": {name: self._identity(path) for name, path in self._evaluated().items()},
                **self._in_8_bits(),
                **without_secrets(
                    self._recipe.model_dump(
                        mode="json", include={"evaluation", "data", "task"}, exclude={"data": UNDECIDING_DATA_KEYS}
                    )
                ),
            },
            "export": lambda: {"student": self._identity(self._distilled())},
        }
        return PhaseFolder(self._output / phase, inputs[phase]())

    def teacher_path(self) -> Path:
        """The teacher that Stage I and II read."""
        tuned = self._recipe.teacher.finetune is not None
        return self._output / "finetune_teacher" / MODEL_FOLDER if tuned else self.teacher_origin

    def student_start_path(self) -> Path:
        """The student before any training."""
        return self._student_origin or self._output / "cut_student" / MODEL_FOLDER

    def student_path(self) -> Path:
        """The student that Stage I and II read."""
        tuned = self._recipe.student.finetune is not None
        return self._output / "finetune_student" / MODEL_FOLDER if tuned else self.student_start_path()

    def _distilled(self) -> Path:
        return self._output / "distill" / MODEL_FOLDER

    def _evaluated(self) -> dict[str, Path]:
        models = {"teacher": self.teacher_path(), "student before": self.student_start_path()}
        if self._recipe.student.finetune is not None:
            models["student fine-tuned"] = self.student_path()
        return {**models, "student after": self._distilled()}

    def _identity(self, folder: Path) -> dict[str, str]:
        if folder not in self._identities:
            self._identities[folder] = model_identity(folder)
        return self._identities[folder]

    def _training_inputs(self, plan: PhasePlan | None, model: Path) -> dict[str, Any]:
        return {
            "model": self._identity(model),
            # how the global batch is cut up and sharded does not decide the result: a requeued run may change it
            "plan": None
            if plan is None
            else plan.model_dump(mode="json", exclude={"micro_batch_size", "micro_batch_tokens"}),
            "deepspeed": {key: self._assembly.deepspeed_json.get(key) for key in ("optimizer", "scheduler")},
            "data_files": self._assembly.listing.sizes(),
            **without_secrets(
                self._recipe.model_dump(
                    mode="json", include={"task", "data", "seed", "precision"}, exclude={"data": UNDECIDING_DATA_KEYS}
                )
            ),
        }

    def _filter_inputs(self, side: str, model: Path) -> dict[str, Any]:
        filters = self._recipe.filters
        assert filters is not None
        shape = filters.model_dump(mode="json", include={"kind", "initialisation", "lm_head", "pooling"})
        plan = filters.teacher if side == "teacher" else filters.student
        layers = list(self._assembly.layers(side))
        hosted = self._in_8_bits() if side == "teacher" else {}
        return {
            **self._training_inputs(plan, model),
            "filters": {**shape, "layers": layers, "dim": self._dim},
            **hosted,
        }

    def _distill_inputs(self) -> dict[str, Any]:
        inputs = self._training_inputs(self._recipe.distill, self.student_path())
        inputs["teacher"] = self._identity(self.teacher_path())
        inputs |= self._in_8_bits() | self._frozen_part()
        inputs["layer_pairs"] = [list(pair) for pair in self._assembly.plan.layer_pairs]
        if self._recipe.distill.method == "ted":
            for side in ("teacher", "student"):
                manifest = self._output / f"filters_{side}" / "phase.json"
                inputs[f"filters_{side}"] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return inputs

    def _in_8_bits(self) -> dict[str, str]:
        """What to know of a teacher whose weights are not its files'; no other host makes a difference."""
        return {"teacher_weights": "int8"} if self._assembly.hosting.host == "int8" else {}

    def _frozen_part(self) -> dict[str, bool]:
        return {"freeze_embeddings": True} if self._recipe.student.freeze_embeddings else {}

    @property
    def _dim(self) -> int:
        return self._assembly.plan.filter_dim

    def _vet_teacher(self, teacher: FrozenModel) -> None:
        """Make sure, once a run, that the teacher has something to teach."""
        if not self._teacher_is_vetted:
            verdict = vet_knowledge(self._assembly, "teacher", teacher)
            if verdict.status == "fail" and self._recipe.teacher.finetune is not None:  # its weights are no surprise
                verdict = replace(verdict, status="warn", detail=f"{verdict.detail} Or fine-tune it for longer")
            act_on(self._assembly, verdict)
        self._teacher_is_vetted = True

    # --- phases -----------------------------------------------------------------------------------------------------

    def _finetune_teacher(self, folder: PhaseFolder) -> None:
        assert self._recipe.teacher.finetune is not None
        self._finetune(folder, "teacher", self._recipe.teacher.finetune, self.teacher_origin)

    def _finetune_student(self, folder: PhaseFolder) -> None:
        assert self._recipe.student.finetune is not None
        self._finetune(folder, "student", self._recipe.student.finetune, self.student_start_path())

    def _finetune(self, folder: PhaseFolder, side: str, plan: PhasePlan, origin: Path) -> None:
        build = self._assembly
        config = build.engine_config(plan, f"{side}.finetune")
        tapped = build.trainable_model(side, origin, config)
        with build.engine(tapped, config, plan, watched=tapped.named_layers()) as engine:
            training = PhaseTraining(build, folder, engine, plan, forward=engine_outputs(engine))
            result = training.run(FinetuneObjective(build.terms))
            state = build.whole_state(tapped.model)

        def write(place: Path) -> dict[str, Any]:
            build.save_model(tapped.model, state, place / MODEL_FOLDER)
            return result

        build.world.on_main(functools.partial(folder.write, write))

    def _cut_student(self, folder: PhaseFolder) -> None:
        from_teacher = self._recipe.student.from_teacher
        assert from_teacher is not None

        def write(place: Path) -> dict[str, Any]:
            self.cut_student(self.teacher_path(), place / MODEL_FOLDER)
            return {"blocks": from_teacher.blocks}

        self._assembly.world.on_main(functools.partial(folder.write, write))

    def cut_student(self, teacher: Path, place: Path) -> None:
        """Write the student that the recipe cuts out of a teacher. On one rank only."""
        from_teacher = self._recipe.student.from_teacher
        assert from_teacher is not None
        family = family_of(self._assembly.teacher_facts.model_type)
        cut(teacher, place, blocks=from_teacher.blocks, family=family)

    def _filters_teacher(self, folder: PhaseFolder) -> None:
        self._learn_filters(folder, "teacher", self.teacher_path())

    def _filters_student(self, folder: PhaseFolder) -> None:
        self._learn_filters(folder, "student", self.student_path())

    def _learn_filters(self, folder: PhaseFolder, side: str, model: Path) -> None:
        build, filters = self._assembly, self._recipe.filters
        assert filters is not None
        plan = filters.teacher if side == "teacher" else filters.student
        config = build.engine_config(plan, f"filters.{side}")
        stage = build_stage_one(build, side, model)
        if side == "teacher":
            self._vet_teacher(stage.body)
        build.drop_beyond_taps(stage.body)
        build.share(stage.body, stage.probes)
        with build.engine(stage.probes, config, plan, watched=stage.watched) as engine:
            training = PhaseTraining(
                build,
                folder,
                engine,
                plan,
                forward=probe_outputs(engine, stage.body),
                outputs=stage.names,
            )
            result = training.run(stage.objective)
            state = build.whole_state(stage.bank)
        stage.body.release()
        of_filter = dict(zip(stage.names, training.scores, strict=True))

        def write(place: Path) -> dict[str, Any]:
            save_filters(place, state, layers=stage.bank.layers, dim=self._dim, kind=filters.kind)
            return {**result, "filters": of_filter}

        build.world.on_main(functools.partial(folder.write, write))

    def _distill(self, folder: PhaseFolder) -> None:
        build, plan = self._assembly, self._recipe.distill
        config = build.engine_config(plan, "distill")
        filters = {side: self._output / f"filters_{side}" for side in ("student", "teacher")}
        stage = build_stage_two(
            build, config, teacher=self.teacher_path(), student=self.student_path(), filters=filters
        )
        if stage.teacher is not None:
            self._vet_teacher(stage.teacher)
            if plan.kl_weight == 0:
                build.drop_beyond_taps(stage.teacher)
            build.share(stage.teacher, stage.module)
        with build.engine(stage.module, config, plan, watched=stage.watched) as engine:
            training = PhaseTraining(build, folder, engine, plan, forward=engine_outputs(engine))
            result = training.run(stage.objective)
            state = build.whole_state(stage.student.model)
            filter_state = build.whole_state(stage.bank)
        if stage.teacher is not None:
            stage.teacher.release()

        def write(place: Path) -> dict[str, Any]:
            build.save_model(stage.student.model, state, place / MODEL_FOLDER)
            if filter_state:
                save_filters(place, filter_state, layers=stage.bank.layers, dim=self._dim, kind=stage.filter_kind)
            return {**result, "teacher": self._identity(self.teacher_path())}

        build.world.on_main(functools.partial(folder.write, write))

    def _evaluate(self, folder: PhaseFolder) -> None:
        build = self._assembly
        results: dict[str, dict[str, float]] = {}
        for name, path in self._evaluated().items():
            model = build.frozen_model("teacher" if name == "teacher" else "student", path, new_head_allowed=True)
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
        causal_lm = isinstance(self._recipe.task, CausalLm)

        def write(place: Path) -> dict[str, Any]:
            export_student(self._distilled(), place, causal_lm=causal_lm)
            return {"student": self._identity(self._distilled())}

        self._assembly.world.on_main(functools.partial(folder.write, write))

    # --- the end ----------------------------------------------------------------------------------------------------

    def results(self) -> dict[str, dict[str, float]] | None:
        """What the evaluation phase measured; None before it."""
        file = self._output / "evaluate" / "evaluation.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
