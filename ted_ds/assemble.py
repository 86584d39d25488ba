"""Where a recipe becomes objects: models, filters, engines, objectives, batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted_ds.config.deepspeed import complete, read_deepspeed_json, zero_stage
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import CausalLm, HeadTask, LabelledTask, SequenceClassification
from ted_ds.data.bad_records import Ledger
from ted_ds.data.labelled_stream import LabelledStream
from ted_ds.data.loader import Batch, Collator, evaluation_batches
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.stream.corpus_stream import CorpusStream
from ted_ds.data.tasks import LabelledData, TaskData
from ted_ds.errors import StoppedOnRequest, TedError
from ted_ds.evaluation.scoring import evaluate
from ted_ds.hosting import IN_WORDS, Hosting
from ted_ds.memory import gib
from ted_ds.models.execution import checkpoint_activations, compile_blocks
from ted_ds.models.families import family_of
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.models.loading import DTYPES, load_model
from ted_ds.models.quantised import quantise_blocks
from ted_ds.models.taps import TappedModel
from ted_ds.numerics.task_terms import TASK_TERMS
from ted_ds.phase_memory import SHARDED_HOSTS
from ted_ds.plan import Plan
from ted_ds.run_folder import Run
from ted_ds.runtime.determinism import seed_everything
from ted_ds.runtime.engine import TrainableEngine
from ted_ds.runtime.frozen import FrozenModel, frozen_engine_config, offload_to
from ted_ds.runtime.preemption import StopNow, StopRequests
from ted_ds.runtime.sharding import full_state_dict, sharded_loading
from ted_ds.runtime.world import World
from ted_ds.screen import Screen
from ted_ds.tracking import Tracker


class Assembly:
    """Builds what the phases need, from one recipe on one world of ranks."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        world: World,
        *,
        tokenizer: PreTrainedTokenizerBase,
        listing: DataListing,
        data: TaskData,
        screen: Screen,
        stops: StopRequests,
        run: Run,
        hosting: Hosting,
    ) -> None:
        self.recipe, self.plan, self.world = recipe, plan, world
        self.tokenizer, self.listing, self.data = tokenizer, listing, data
        self.screen = screen
        self.tracker: Tracker | None = None  # opened on rank 0 once there is something to write
        self.ledger: Ledger | None = None  # likewise
        self.stops = stops
        self.run, self.hosting = run, hosting
        self.deepspeed_json = read_deepspeed_json(recipe.deepspeed)
        self.dtype = DTYPES[recipe.precision]
        assert plan.teacher is not None  # both are known once their files are here
        assert plan.student is not None
        self.teacher_facts, self.student_facts = plan.teacher, plan.student
        self.terms = TASK_TERMS[recipe.task.kind]
        vocabulary = tokenizer.get_vocab() if isinstance(recipe.task, CausalLm) else {}
        self.num_shared_ids = max(vocabulary.values()) + 1 if vocabulary else None
        self.collate = _collator(recipe, tokenizer)

    def layers(self, side: str) -> tuple[int, ...]:
        """The ``student``'s or the ``teacher``'s side of the layer map."""
        return tuple(pair[0 if side == "student" else 1] for pair in self.plan.layer_pairs)

    def facts(self, side: str) -> ModelFacts:
        """What the ``student``'s or the ``teacher``'s files say."""
        return self.student_facts if side == "student" else self.teacher_facts

    # --- models -------------------------------------------------------------------------------------------------

    def frozen_model(
        self, side: str, path: Path, layers: Sequence[int] = (), *, new_head_allowed: bool = False
    ) -> FrozenModel:
        """A frozen, tapped model: the ``teacher`` on its host, the ``student`` whole or sharded like it."""
        host = self.hosting.host
        if side == "student":
            host = "zero3" if self.hosting.is_sharded else "replica"
        engine_config: dict[str, Any] | None = None
        if host in SHARDED_HOSTS:
            offload = offload_to(host, self.recipe.teacher.offload_dir, max(self.teacher_facts.parameters.sizes))
            engine_config = frozen_engine_config(self.deepspeed_json, self.recipe.precision, offload=offload)
        tapped = self._tapped(path, layers, engine_config, new_head_allowed=new_head_allowed, in_8_bits=host == "int8")
        frozen = FrozenModel(tapped, device=self.world.device, engine_config=engine_config)
        self.world.bound_waits()
        held = self.world.gather((frozen.num_parameters_held, frozen.bytes_held))
        self.screen.say(
            f"  {path}: {frozen.num_parameters:,} parameters, {IN_WORDS[host]}; per rank "
            f"{', '.join(f'{count:,}' for count, _ in held)}, at most {gib(max(size for _, size in held))}"
        )
        return frozen

    def share(self, frozen: FrozenModel, module: nn.Module) -> None:
        """Keep once what a frozen model and the module beside it have in common; before an engine takes that."""
        if zero_stage(self.deepspeed_json) == 3:  # the engine will shard its own
            return
        for parameter in module.parameters():
            if not parameter.requires_grad:  # the engine would bring it to the device only later
                parameter.data = parameter.data.to(self.world.device)
        shared = self.world.gather(frozen.share_with(module))
        if any(shared):
            counts = ", ".join(f"{count:,}" for count in shared)
            self.screen.say(f"  parameters equal on both sides, kept once; per rank {counts}")

    def drop_beyond_taps(self, frozen: FrozenModel) -> None:
        """Free what no matched layer needs of a frozen model that is not asked for predictions."""
        dropped = self.world.gather(frozen.drop_beyond_taps())
        if any(dropped):
            freed = ", ".join(f"{count:,}" for count in dropped)
            self.screen.say(f"  parameters that no matched layer needs, freed per rank: {freed}")

    def trainable_model(
        self, side: str, path: Path, config: Mapping[str, Any], layers: Sequence[int] = ()
    ) -> TappedModel:
        """A tapped model to be trained under a completed DeepSpeed config; ZeRO-3 shards it as it loads."""
        tapped = self._tapped(path, layers, config if zero_stage(config) == 3 else None, new_head_allowed=True)
        if self.recipe.activation_checkpointing:
            checkpoint_activations(tapped.model)
        if side == "student" and self.recipe.student.freeze_embeddings:
            embeddings: Any = tapped.model.get_input_embeddings()
            embeddings.requires_grad_(False)
        return tapped

    def _tapped(
        self,
        path: Path,
        layers: Sequence[int],
        shard_config: Mapping[str, Any] | None,
        *,
        new_head_allowed: bool,
        in_8_bits: bool = False,
    ) -> TappedModel:
        task = self.recipe.task
        # a new head must start the same on every rank and, by its own seed, in every phase that needs one
        seed_everything(self.recipe.seed, phase="model")
        with self.world.together():  # a sharded load communicates: make sure first that every rank can read it
            read_model_facts(path)
        loaded: tuple[PreTrainedModel, list[str]] | None = None
        failure: TedError | None = None
        try:
            loaded = load_model(
                path,
                head=None if isinstance(task, CausalLm) else _head_config(task),
                dtype=self.dtype,
                new_head_allowed=new_head_allowed,
                context=sharded_loading(shard_config) if shard_config else contextlib.nullcontext(),
                attention=self.recipe.attention,
            )
        except TedError as error:
            failure = error
        with self.world.together():
            if failure is not None:
                raise failure
        assert loaded is not None
        model, fresh = loaded
        model.config.pad_token_id = self.tokenizer.pad_token_id  # decoders find the token they classify by it
        family = family_of(model.config.model_type)
        if in_8_bits:
            quantise_blocks(model, family, self.world.device)
        if self.recipe.torch_compile and shard_config is None:
            compile_blocks(model, family)
        return TappedModel(model, family, layers, fresh_parameters=fresh)

    def save_model(self, model: PreTrainedModel, state: dict[str, Any], folder: Path) -> None:
        """Write a plain transformers folder; ``state`` holds the whole weights by the model's own names."""
        model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def whole_state(self, module: nn.Module) -> dict[str, Any]:
        """A module's whole weights, on rank 0. Every rank must call it."""
        return full_state_dict(module, keep=self.world.is_main)

    # --- training -----------------------------------------------------------------------------------------------

    def engine_config(self, plan: PhasePlan, plan_path: str) -> dict[str, Any]:
        """The DeepSpeed config of a phase."""
        return complete(
            self.deepspeed_json,
            plan,
            plan_path=plan_path,
            precision=self.recipe.precision,
            world_size=self.world.size,
            source=self.recipe.deepspeed,
        )

    @contextlib.contextmanager
    def engine(
        self, module: nn.Module, config: Mapping[str, Any], plan: PhasePlan, *, watched: Mapping[str, nn.Module]
    ) -> Iterator[TrainableEngine]:
        """The one trainable engine of a phase, released at the end."""
        engine = TrainableEngine(
            module,
            config=config,
            schedule=plan.schedule,
            warmup_steps=plan.warmup_steps,
            max_steps=plan.max_steps,
            weight_decay=plan.weight_decay,
            dtype=self.dtype,
            world=self.world,
            watched=watched,
        )
        try:
            yield engine
        finally:
            engine.release()

    def training_batches(
        self, plan: PhasePlan, *, num_workers: int, state: Mapping[str, Any] | None = None
    ) -> LabelledStream | CorpusStream:
        """This rank's microbatches of each step of a phase, from the first or from a state on.

        ``num_workers`` processes read a corpus ahead.
        """
        if isinstance(self.data, LabelledData):
            return LabelledStream(
                samples=self.data.train,
                collate=self.collate,
                seed=self.recipe.seed,
                global_batch_size=plan.global_batch_size,
                micro_batch_size=plan.micro_batch_size,
                micro_batch_tokens=plan.micro_batch_tokens,
                grouping_window_steps=self.recipe.data.length_grouping.window_steps,
                rank=self.world.rank,
                world_size=self.world.size,
                state=state,
            )
        assert plan.micro_batch_size is not None  # the recipe refuses a token budget for packed sequences
        return self.data.stream(
            self.collate,
            seed=self.recipe.seed,
            global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=num_workers,
            timeout_s=self.recipe.collective_timeout_s,
            state=state,
        )

    # --- numbers ------------------------------------------------------------------------------------------------

    def track(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write numbers down. Every rank must call it: a disk that is full ends all of them.

        Raises:
            TedError: They cannot be written; on every rank.
        """
        with self.world.together():
            if self.tracker is not None:
                self.tracker.log(phase, step, values)

    def rewind_tracker(self, phase: str, step: int, scored_step: int = 0) -> None:
        """Forget the numbers of a phase that come again; see :meth:`Tracker.rewind`. Every rank must call it."""
        with self.world.together():
            if self.tracker is not None:
                self.tracker.rewind(phase, step, scored_step)

    # --- stopping -----------------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """End here where any rank was asked to stop. Every rank must call it.

        Raises:
            StopNow: On every rank.
        """
        if self.world.highest(self.stops.reason is not None)[0]:
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

    def evaluate(self, forward: Any) -> tuple[list[dict[str, float]], float]:
        """Held-out metrics of each output of ``forward(batch)`` (:mod:`ted_ds.runtime.outputs`), and tokens per second.

        Raises:
            StopNow: Any rank was asked to stop; on every rank.
        """
        batches: Iterator[Batch] = evaluation_batches(
            self.data.heldout,
            self.collate,
            micro_batch_size=self.recipe.evaluation.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        return evaluate(
            forward,
            batches,
            task=self.recipe.task.kind,
            gather=self.world.gather,
            device=self.world.device,
            before_batch=self.stop_if_asked,
        )


def _collator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Collator:
    task, pad_id = recipe.task, tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    padding = {"side": recipe.data.padding.side, "multiple_of": recipe.data.padding.multiple_of}
    if isinstance(task, CausalLm):
        return Collator(pad_id, "tokens", isolate_documents=task.packing.isolate_documents, **padding)
    if isinstance(task, SequenceClassification):
        return Collator(pad_id, "class", **padding)
    return Collator(pad_id, "numbers", num_outputs=task.num_outputs, **padding)


PROBLEM_TYPES = {
    "regression": "regression",
    "multi_label_classification": "multi_label_classification",
    "sequence_classification": "single_label_classification",
    "soft_label_classification": "single_label_classification",
}


def _head_config(task: HeadTask) -> dict[str, Any]:
    """What transformers' config says of the head, so that an exported model computes its own loss as trained."""
    labels = task.labels if isinstance(task, LabelledTask) else task.target_columns
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "problem_type": PROBLEM_TYPES[task.kind],
    }
