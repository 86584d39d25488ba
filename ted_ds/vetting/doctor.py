"""``ted-ds doctor``: is this pair of models sane? Looks at everything that goes into a run, and takes one real step."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ted_ds.assembly.assembly import Assembly
from ted_ds.assembly.stages import StageTwo, build_stage_two
from ted_ds.assembly.student_cut import made_for_now
from ted_ds.data.loader import Batch
from ted_ds.data.two_tokenizers import BOTH
from ted_ds.errors import TedError
from ted_ds.models.relation_taps import RelationTap
from ted_ds.numerics.filters import Match
from ted_ds.objectives.distill import DistillObjective
from ted_ds.output.phase_folder import PhaseFolder, model_identity
from ted_ds.output.run_folders import RunFolders
from ted_ds.planning.phase import DISTILL, FINETUNE_STUDENT, FINETUNE_TEACHER, Phase
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.sharding import collect_garbage, whole_parameters
from ted_ds.runtime.zero_runner import ZeroRunner
from ted_ds.vetting.batch_text import first_batch
from ted_ds.vetting.contracts import vet_contracts
from ted_ds.vetting.filters import vet_learned
from ted_ds.vetting.precision import vet_precision
from ted_ds.vetting.preflight import vet_composition, vet_knowledge, vet_weights
from ted_ds.vetting.repeated_step import repeat_step
from ted_ds.vetting.verdict import Status, Verdict, failures

MARKS = {"pass": "pass", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
LOSS_SCALE_STEPS = 24
"""How often fp16's loss scale may halve until it fits."""
LARGEST_SELF_LOSS = 1e-6
"""What is left of a loss between a model and itself: nothing but fp32 rounding."""


def has_filters(side: str, verdicts: Sequence[Verdict]) -> bool:
    """Whether what was learned for a side can be loaded: it is there, and whole."""
    return not any(one.check == f"filters of {side}" and one.status in ("fail", "skip") for one in verdicts)


class Doctor:
    """Examines one recipe on one world of ranks; writes nothing that stays."""

    def __init__(self, assembly: Assembly, folders: RunFolders, folder_of: Callable[[Phase], PhaseFolder]) -> None:
        """Examine what an assembly builds; ``folder_of`` gives a phase's folder, with what it depends on."""
        self._build, self._folders, self._folder_of = assembly, folders, folder_of
        self._recipe, self._world = assembly.recipe, assembly.world
        self._verdicts: list[Verdict] = []

    def examine(self) -> bool:
        """Print the layer map, a batch and the verdicts; whether none of them is a failure.

        Raises:
            TedError: There is no batch to look at, or one rank alone cannot go on.
        """
        batch = self._world.agree(lambda: next(self._first_batches())[0])
        teacher_is_ready = self._is_done(FINETUNE_TEACHER)
        teacher = self._folders.teacher_path() if teacher_is_ready else self._folders.teacher_origin
        with self._student(teacher) as (student, student_is_ready):
            broken = self._look_at_contracts(student)
            for name, path in (("teacher", teacher), ("student", student)):
                self._attempt(f"{name} weights", lambda name=name, path=path: self._look_at_weights(name, path))
            self._look_at_filters()
            if "vocabulary" in broken:
                for check in ("student", "stage II"):
                    self._add(check, "skip", "a token without an embedding would end this in a crash")
            else:
                self._attempt("student", lambda: self._look_at_student(student, is_ready=student_is_ready))
                look = self._look_at_stage_two
                self._attempt("stage II", lambda: look(teacher, student, batch, is_ready=teacher_is_ready))
        self._show_layer_map()
        for side in BOTH if batch.of_teacher is not None else ("student",):
            for line in first_batch(batch.read_by(side), self._build.tokenizers[side], self._build.kind):
                self._build.screen.say(line if batch.of_teacher is None else f"{side}: {line}")
        rows = [(one.check, MARKS[one.status], one.detail) for one in self._verdicts]
        self._build.screen.table(f"{self._recipe.name}: doctor", ("check", "verdict", "detail"), rows, numbers=False)
        failed = failures(self._verdicts)
        self._build.screen.say(f"{len(failed)} of {len(rows)} checks failed" if failed else "nothing failed")
        return not failed

    def repeat(self, times: int) -> None:
        """Compute the gradients of Stage II's first step so often again, and say whether all ranks repeat themselves.

        Raises:
            DeviceFaultError: A rank came to other bits; on every rank.
            StopNow: A rank was asked to stop; on every rank.
            TedError: There is no step to repeat.
        """
        is_ready = self._is_done(FINETUNE_TEACHER)
        teacher = self._folders.teacher_path() if is_ready else self._folders.teacher_origin
        with self._student(teacher) as (student, _):
            self._look_at_filters()
            stage, config = self._stage_two(teacher, student, is_ready=is_ready)
            stage.objective.begin_step(None)
            plan = self._recipe.distill
            with self._build.engine(DISTILL.name, stage.module, config, plan, watched=stage.watched) as engine:
                # the doctor examines without a pipeline
                repeat_step(self._build, cast(ZeroRunner, engine), stage, self._first_batches(), times)
            if stage.teacher is not None:
                stage.teacher.release()

    def _first_batches(self) -> Iterator[list[Batch]]:
        sides = self._build.sides_of(DISTILL.name)
        return self._build.training_batches(self._recipe.distill, num_workers=0, sides=sides)

    def _is_done(self, phase: Phase) -> bool:
        """Whether a phase of Stage 0 is behind the model: not asked for, or complete with this recipe's settings."""
        if not phase.is_in(self._recipe):
            return True
        if not self._world.on_main(self._folders.place(phase).exists):
            return False
        try:
            return self._world.on_main(lambda: self._folder_of(phase).is_complete())
        except TedError as error:
            self._add(phase.name, "fail", str(error))
            return False

    def _attempt(self, check: str, work: Callable[[], None]) -> None:
        """Do some of the checks; what cannot even be loaded has failed them."""
        try:
            work()
        except TedError as error:
            if not error.agreed and self._world.size > 1:
                raise  # of this rank alone: the others are elsewhere
            self._add(check, "fail", str(error))
        collect_garbage()

    def _add(self, check: str, status: Status, detail: str) -> None:
        self._verdicts.append(Verdict(check, status, detail))

    # --- files --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _student(self, teacher: Path) -> Iterator[tuple[Path, bool]]:
        """The student as it is now, and whether it is past Stage 0; made for the time being where it must be."""
        start = self._folders.student_start_path()
        tuned = FINETUNE_STUDENT.is_in(self._recipe)
        if tuned and self._is_done(FINETUNE_STUDENT):
            yield self._folders.student_path(), True
            return
        if self._world.on_main(start.is_dir):
            yield start, not tuned
            return
        with made_for_now(self._build, teacher) as place:
            yield place, False

    def _look_at_contracts(self, student: Path) -> Mapping[str, list[str]]:
        broken, verdicts = vet_contracts(self._build, self._folders.teacher_origin, student)
        self._verdicts += verdicts
        return broken

    def _look_at_weights(self, name: str, path: Path) -> None:
        identity = self._world.on_main(lambda: model_identity(path))
        self._add(f"{name} files", "pass", f"{path}, sha256 {identity['sha256'][:16]}")
        self._verdicts.append(vet_weights(self._build, name, path))

    def _look_at_filters(self) -> None:
        if not self._recipe.distill.needs.filters:
            return
        for side in ("teacher", "student"):
            check = f"filters of {side}"
            path = self._folders.filters_path(side)
            if not self._world.on_main(path.exists):
                self._add(check, "skip", "not learned yet; ted-ds filters does it, fresh ones stand in here")
                continue
            self._attempt(check, lambda side=side: self._look_at_learned(side))

    def _look_at_learned(self, side: str) -> None:
        def result() -> dict[str, Any]:
            folder = self._folder_of(self._folders.filters_phase(side))
            folder.is_complete()
            return folder.result()

        self._verdicts.append(vet_learned(self._build, side, self._world.on_main(result)))

    # --- models -------------------------------------------------------------------------------------------------

    def _look_at_student(self, path: Path, *, is_ready: bool) -> None:
        model = self._build.models.frozen("student", path, new_head_allowed=True)
        verdict = vet_knowledge(self._build, "student", model)
        self._look_at_model("student", model)
        model.release()
        if verdict.status == "fail" and "not finite" not in verdict.detail:  # it has yet to learn
            when = "" if is_ready else " (before Stage 0)"
            verdict = Verdict(verdict.check, "warn", verdict.detail + when)
        self._verdicts.append(verdict)

    def _look_at_model(self, name: str, model: FrozenModel) -> None:
        """Which weights start random (of a teacher that will not be trained, none), and whether rows stay apart."""
        fresh = ", ".join(model.fresh_parameters)
        detail = f"not in its files, starts random: {fresh}" if fresh else "every weight is in its files"
        self._add(f"{name} initialisation", "warn" if fresh else "pass", detail)
        self._verdicts.append(vet_composition(self._build, name, model))

    def _stage_two(self, teacher: Path, student: Path, *, is_ready: bool) -> tuple[StageTwo, dict[str, Any]]:
        """What trains in Stage II, with the filters that are learned, and its DeepSpeed config."""
        config = self._build.engine_config(self._recipe.distill, "distill")
        folders: dict[str, Path | None] = {}
        for side in ("teacher", "student"):
            learned = self._recipe.distill.needs.filters and has_filters(side, self._verdicts)
            folders[side] = self._folders.filters_path(side) if learned else None
        stage = build_stage_two(
            self._build, config, teacher=teacher, student=student, filters=folders, new_head_allowed=not is_ready
        )
        return stage, config

    def _look_at_stage_two(self, teacher: Path, student: Path, batch: Batch, *, is_ready: bool) -> None:
        build, plan = self._build, self._recipe.distill
        stage, config = self._stage_two(teacher, student, is_ready=is_ready)
        if stage.teacher is not None:
            self._look_at_model("teacher", stage.teacher)
            verdict = vet_knowledge(build, "teacher", stage.teacher)
            if not is_ready:
                verdict = Verdict(verdict.check, "skip", f"{verdict.detail}; teacher.finetune is still to come")
            self._verdicts += [verdict, vet_precision(build, teacher)]
            own = batch.read_by("teacher").to(self._world.device)
            self._distil_into_itself(stage, teacher, own, head_may_be_new=not is_ready)
        stage.objective.begin_step(None)  # a term whose weight is 0 at first reaches its parameters later
        with build.engine(DISTILL.name, stage.module, config, plan, watched=stage.watched) as engine:
            self._take_a_step(cast(ZeroRunner, engine), stage)  # a pair is examined without a pipeline
        if stage.teacher is not None:
            stage.teacher.release()

    @torch.no_grad()
    def _distil_into_itself(self, stage: StageTwo, teacher: Path, batch: Batch, *, head_may_be_new: bool) -> None:
        """A student that is the teacher, loaded once more, with the teacher's filters, has nothing to learn from it."""
        objective = stage.objective
        assert isinstance(objective, DistillObjective)
        layers = self._build.layers("teacher")
        twin = self._build.models.frozen("teacher", teacher, layers, new_head_allowed=head_may_be_new)
        states: dict[int, Tensor] = {}
        losses: list[Tensor] = []

        def match(place: int, match: Match) -> Tensor:  # by the plain formula: nothing at all is left of equal features
            both, keep = (states[place], match.teacher_states), batch.compared(layers[place])
            if match.texts is None:
                own, theirs = (match.teacher_filter(state) for state in both)
            else:
                own, theirs = (match.teacher_filter.of_texts(state, match.texts.teacher) for state in both)
                keep = match.texts.kept.unsqueeze(1)
            return match.distance.sum(own, theirs, keep=keep)

        def forward(inputs: dict[str, Tensor], learn: Callable[..., Tensor]) -> Tensor:
            twin(inputs, lambda own: losses.append(learn(own, match)), on_state=states.__setitem__)
            return losses[0]

        counts = objective.counts(batch)
        relations = objective.relations
        if relations is not None:
            own = RelationTap(twin.tapped, relations.teacher.number)
            objective.relations = replace(relations, student=own)
        _, totals = objective.loss(forward, batch, counts)
        objective.relations = relations
        twin.release()
        left = {name: float(totals[name] / counts[name].clamp(min=1)) for name in totals if name != "loss/task"}
        everywhere = {name: max((one[name] for one in self._world.gather(left)), key=abs) for name in left}
        wrong = {name: value for name, value in everywhere.items() if not abs(value) <= LARGEST_SELF_LOSS}
        shown = ", ".join(f"{name} {value:.2g}" for name, value in (wrong or everywhere).items())
        self._add("teacher as its own student", "fail" if wrong else "pass", shown or "no term compares models")

    def _take_a_step(self, engine: ZeroRunner, stage: StageTwo) -> None:
        engine.accumulate(self._first_batches(), stage.objective)
        unreached: list[str] = []
        digest = hashlib.sha256()
        for name, gradient in engine.gradients():
            # an adapter's first map learns once its second, which starts at 0, has moved
            if (gradient is None or not gradient.any()) and ".lora_A." not in name:
                unreached.append(name)
            if gradient is not None:
                digest.update(_bytes(gradient))
        num_trained = sum(parameter.requires_grad for parameter in stage.module.parameters())
        if unreached:
            names = f"{len(unreached)} of {num_trained} parameters receive none: {', '.join(unreached[:3])}"
            plan = self._recipe.distill
            if plan.task_weight or plan.needs.predictions:
                self._add("gradients", "fail", names)
            else:
                self._add("gradients", "warn", f"{names}; task_weight and kl_weight are 0, so nothing needs the head")
        else:
            self._add("gradients", "pass", f"all {num_trained} trained parameters receive one")
        frozen = stage.teacher.trained() if stage.teacher is not None else []
        if stage.teacher_filters is not None:
            frozen += [n for n, p in stage.teacher_filters.named_parameters() if p.requires_grad or p.grad is not None]
        self._add(
            "frozen parameters",
            "fail" if frozen else "pass",
            f"{len(frozen)} of them train: {', '.join(frozen[:3])}" if frozen else "none of them receives a gradient",
        )
        self._compare_ranks("gradients across ranks", digest.hexdigest())
        skipped = engine.update()
        for _ in range(LOSS_SCALE_STEPS):
            if skipped is not None and skipped.is_scale_search:
                skipped = engine.step(self._first_batches(), stage.objective)
        if skipped is not None:
            self._add("one step", "fail", f"skipped: {skipped.reason}")
            return
        report = engine.report(stage.objective)
        shown = {name: value for name, value in report.items() if name.startswith("loss/") and "/layer_" not in name}
        self._add("one step", "pass", ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        digest = hashlib.sha256()
        for _, parameter in whole_parameters(stage.module):
            digest.update(_bytes(parameter))
        self._compare_ranks("weights across ranks", digest.hexdigest())

    def _compare_ranks(self, check: str, digest: str) -> None:
        digests = self._world.gather(digest)
        differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differing:
            self._add(check, "fail", f"ranks {differing} differ from rank 0")
        else:
            self._add(check, "pass", f"sha256 {digest[:16]} on all {len(digests)}")

    # --- what a person looks at ---------------------------------------------------------------------------------

    def _show_layer_map(self) -> None:
        if not self._build.plan.layer_pairs:
            return
        widths = [self._build.facts(side).hidden_size for side in ("student", "teacher")]
        rows = [
            (f"layer {student}", str(widths[0]), f"layer {teacher}", str(widths[1]), str(self._build.plan.filter_dim))
            for student, teacher in self._build.plan.layer_pairs
        ]
        self._build.screen.table("layer map", ("student", "width", "teacher", "width", "matched in"), rows)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
