"""Where a recipe becomes objects: models, engines, batches, scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ted_ds.assembly.given import Given
from ted_ds.assembly.models import ModelMaker
from ted_ds.config.deepspeed import complete, schedule_of
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.data.batches import Batches
from ted_ds.data.loader import Batch, Collator, evaluation_batches
from ted_ds.data.no_batches import NoBatches
from ted_ds.data.samples import Sample
from ted_ds.data.step_division import StepDivision
from ted_ds.data.two_tokenizers import BOTH
from ted_ds.errors import StoppedOnRequest
from ted_ds.models.files import ModelFacts
from ted_ds.models.loading import DTYPES
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.layer_map import Layer
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.planning.phase import DISTILL, phase_named
from ted_ds.planning.pipeline_cut import Stage
from ted_ds.runtime.cargo import Waybill
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.runtime.initialize import check_config
from ted_ds.runtime.pipeline import Travellers
from ted_ds.runtime.preemption import StopNow
from ted_ds.runtime.start import start_runner
from ted_ds.runtime.step_runner import EngineSettings, StepRunner
from ted_ds.tasks.base import Scorer
from ted_ds.tasks.language_tests import EndCollator, OpenedTest, open_test
from ted_ds.tasks.scoring import evaluate


class Assembly:
    """Builds what the phases need, from one recipe on one world of ranks."""

    def __init__(self, given: Given) -> None:
        """Build for what is given; nobody else writes into this."""
        recipe, plan, world, tokenizer = given.recipe, given.plan, given.world, given.tokenizers["student"]
        self.kind = given.kind
        self.recipe, self.plan, self.world = recipe, plan, world
        self.tokenizers, self.data, self.readers = given.tokenizers, given.data, given.readers
        self.screen, self.stops = given.screen, given.stops
        self.run, self.hosting, self.deepspeed_choice = given.run, given.hosting, given.deepspeed_choice
        self.own = given.own
        self.dtype = DTYPES[recipe.precision]
        assert plan.teacher is not None  # both are known once their files are here
        assert plan.student is not None
        self.deepspeed_json = given.deepspeed_json
        with world.together():
            for path, one in recipe.phase_plans().items():
                check_config(str(recipe.deepspeed), self.engine_config(one, path), world.num_replicas)
        self.teacher_facts, self.student_facts = plan.teacher, plan.student
        self.terms, self.training_terms = self.kind.terms, self.kind.training_terms
        vocabulary = tokenizer.get_vocab() if recipe.task.has_lm_head else {}
        self.num_shared_ids = max(vocabulary.values()) + 1 if vocabulary else None
        self.collate = self.readers.of("student").collate
        self.origins = given.origins
        self.models = ModelMaker(given)

    def layers(self, side: str) -> tuple[Layer, ...]:
        """The ``student``'s or the ``teacher``'s side of the layer map."""
        return self.plan.layers(side)

    def facts(self, side: str) -> ModelFacts:
        """What the ``student``'s or the ``teacher``'s files say."""
        return self.student_facts if side == "student" else self.teacher_facts

    def terms_to_train(self, side: str) -> TaskTerms:
        """The terms of a model that trains whole: routers of a language model have one of their own."""
        if not self.recipe.task.has_lm_head:
            return self.training_terms
        return replace(self.training_terms, balance_weight=self.facts(side).balance_weight)

    def sides_of(self, phase: str) -> tuple[str, ...]:
        """The models that read a phase's batches."""
        asks_no_teacher = phase == DISTILL.name and not self.recipe.distill.needs.teacher
        return ("student",) if asks_no_teacher else phase_named(phase).sides

    def stage(self, phase: str) -> Stage | None:
        """What this rank's stage of a pipeline holds in a phase; None where there is no pipeline."""
        return self.plan.stages[phase][self.world.stage] if self.world.num_stages > 1 else None

    # --- training -----------------------------------------------------------------------------------------------

    def engine_config(self, plan: PhasePlan, plan_path: str) -> dict[str, Any]:
        """The DeepSpeed config of a phase."""
        return complete(
            self.deepspeed_json,
            plan,
            plan_path=plan_path,
            precision=self.recipe.precision,
            world_size=self.world.num_replicas,
            source=self.recipe.deepspeed,
            on_gpu=self.world.device.type == "cuda",
        )

    @contextlib.contextmanager
    def engine(
        self,
        phase: str,
        module: nn.Module,
        config: Mapping[str, Any],
        plan: PhasePlan,
        *,
        watched: Mapping[str, nn.Module],
        trained: TappedModel | None = None,
        frozen: Mapping[str, FrozenModel] = {},
    ) -> Iterator[StepRunner]:
        """The one trainable engine of a phase, released at the end.

        Args:
            phase: Which.
            module: What trains.
            config: The completed DeepSpeed config.
            plan: How it trains.
            watched: See :class:`StepRunner`.
            trained: The model in ``module``; None in Stage I.
            frozen: The models beside it, by side.
        """
        collate = self.readers.of(*self.sides_of(phase)).collate
        settings = EngineSettings(
            config,
            schedule_of(self.deepspeed_json, plan),
            plan.warmup_steps,
            plan.steps,
            plan.weight_decay,
            self.dtype,
            schedule_parameters=plan.schedule_parameters,
            replay_every_steps=self.recipe.replay.every_steps,
            source=str(self.recipe.deepspeed),
        )
        engine = start_runner(
            module,
            settings,
            world=self.world,
            watched=watched,
            travellers=self._travellers(phase, trained, frozen),
            waybill=Waybill(
                has_trained=trained is not None,
                labels_are_numbers=collate.labels == "numbers",
                isolated=collate.isolate_documents,
                has_token_types=collate.with_token_types,
                masks=collate.masks,
            ),
        )
        try:
            yield engine
        finally:
            engine.release()

    def _travellers(self, phase: str, trained: TappedModel | None, frozen: Mapping[str, FrozenModel]) -> Travellers:
        """Whose states pass this rank's stage of a pipeline. Every rank must call it."""
        here = self.plan.stages[phase][self.world.stage]
        passing = {side: frozen[side] for side in sorted(frozen) if side in here.runs}
        awaited = [side for side, one in passing.items() if not one.borrows]
        trains = trained is not None and any(one.requires_grad for one in trained.parameters())
        stages = self.world.gather((awaited, trains))[:: self.world.num_replicas]
        return Travellers(
            trained,
            {side: one.tapped for side, one in passing.items()},
            arriving=awaited,
            going_on=[side for awaited, _ in stages[self.world.stage + 1 :][:1] for side in awaited],
            trains_before=any(trains for _, trains in stages[: self.world.stage]),
        )

    def training_batches(
        self,
        plan: PhasePlan,
        *,
        num_workers: int,
        state: Mapping[str, Any] | None = None,
        sides: Sequence[str] = BOTH,
    ) -> Batches:
        """This rank's microbatches of each step of a phase, from the first or from a state on.

        ``num_workers`` processes read a corpus ahead; ``sides`` are those whose models read it.
        """
        if not self.world.reads_data:
            return NoBatches()
        sizes = (plan.global_batch_size, plan.micro_batch_size, plan.micro_batch_tokens)
        reader = self.readers.of(*sides)
        return reader.data.stream(
            reader.collate,
            StepDivision(*sizes, rank=self.world.replica, world_size=self.world.num_replicas),
            seed=self.recipe.order_seed,
            num_workers=num_workers,
            timeout_s=self.recipe.collective_timeout_s,
            state=state,
            with_transfer=plan.takes_transfer,
        )

    # --- stopping -----------------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """End here where any rank was asked to stop. Every rank must call it.

        Raises:
            StopNow: On every rank.
        """
        if self.world.highest(self.stops.reason is not None)[0]:
            self.stops.agreed()
            raise StopNow

    def stopped(self, where: str, saved: str) -> StoppedOnRequest:
        """The error to leave with once everything is saved. Every rank must call it."""
        reasons = [(rank, reason) for rank, reason in enumerate(self.world.gather(self.stops.reason)) if reason]
        (first, reason), *others = reasons
        ranks = f"rank {first}" + (f" and {len(others)} more" if others else "")
        return StoppedOnRequest(
            f"stopped on {reason} ({ranks}) {where}. {saved}. Start the same command again to go on"
        )

    # --- evaluation ---------------------------------------------------------------------------------------------

    def language_tests(self) -> list[OpenedTest]:
        """Those of ``evaluation.perplexity`` and ``last_word``, read.

        Raises:
            DataError: One cannot be.
        """
        start, tests = self.data.start, self.recipe.evaluation.tests
        tokenizer = self.tokenizers["student"]
        return [open_test(self.recipe, name, test, tokenizer, start) for _, name, test in tests]

    def run_test(self, forward: Any, test: OpenedTest) -> dict[str, float]:
        """Metrics of the one output of ``forward`` on a test of language models.

        Raises:
            StopNow: Any rank was asked to stop; on every rank.
        """
        whole = Collator(self.collate.pad_id, "tokens", multiple_of=self.collate.multiple_of)
        (metrics,), _ = self._score(forward, test.samples, EndCollator(whole), test.scorer, in_pipeline=False)
        return {f"{test.name}/{metric}": value for metric, value in metrics.items()}

    def evaluate(
        self,
        forward: Any,
        samples: Sequence[Sample] | None = None,
        *,
        scorer: Scorer | None = None,
        in_pipeline: bool = False,
        sides: Sequence[str] = BOTH,
    ) -> tuple[list[dict[str, float]], float]:
        """Metrics of each output of ``forward(batch)`` (:mod:`ted_ds.runtime.outputs`), and tokens per second.

        Those on ``samples``, by ``scorer``; unset: on held-out data, and by the task's. In a pipeline all stages see
        the same batches, else every rank sees its own. They are read as models of ``sides`` read them.

        Raises:
            StopNow: Any rank was asked to stop; on every rank.
        """
        reader = self.readers.of(*sides)
        scored = reader.data.heldout if samples is None else samples
        return self._score(forward, scored, reader.collate, scorer or self.kind.scorer, in_pipeline=in_pipeline)

    def _score(
        self,
        forward: Any,
        samples: Sequence[Sample],
        collate: Collator | EndCollator,
        scorer: Scorer,
        *,
        in_pipeline: bool,
    ) -> tuple[list[dict[str, float]], float]:
        """Metrics of each output, and tokens per second.

        Raises:
            StopNow: Any rank was asked to stop; on every rank.
        """
        self.stops.has_work(True)  # a batch may take long, and all see the request after it
        batches: Iterator[Batch] = evaluation_batches(
            samples,
            collate,
            micro_batch_size=self.recipe.evaluation.micro_batch_size,
            rank=self.world.replica if in_pipeline else self.world.rank,
            world_size=self.world.num_replicas if in_pipeline else self.world.size,
        )
        return evaluate(
            forward,
            batches,
            scorer=scorer,
            gather=self.world.gather,
            device=self.world.device,
            before_batch=self.stop_if_asked,
            counts_tokens=not in_pipeline or self.world.reads_data,
        )
