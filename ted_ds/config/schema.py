"""The recipe's schema: every key a user may write, its type, default, unit and rule.

Models are frozen and refuse unknown keys. Rules that need a file, a model or the number of ranks live in
:mod:`ted_ds.planning.plan`; rules that follow from the recipe alone live here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ted_ds.config.checkpoint import Checkpoint
from ted_ds.config.data import Data
from ted_ds.config.distill import Distill
from ted_ds.config.evaluation import Evaluation, StridedPerplexity
from ted_ds.config.layers import Filters, LayerMap
from ted_ds.config.pair import Student, Teacher
from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.pipeline import Pipeline
from ted_ds.config.replay import Replay
from ted_ds.config.section import Section, open_value, rule
from ted_ds.config.shipped import DEEPSPEED, named
from ted_ds.config.study import Study
from ted_ds.config.tasks import Task
from ted_ds.config.teacher_precision import precision_mistakes
from ted_ds.config.tracking import Tracking
from ted_ds.config.weights import highest
from ted_ds.errors import counted

NUM_SPECIAL_TOKENS = 4
"""Of a trained tokenizer: unknown, begin, end, padding."""
NUM_BYTES = 256


class TokenizerTraining(Section):
    """A tokenizer to train on the training documents: ``ted-ds tokenizer train``."""

    kind: Literal["unigram", "bpe"] = "unigram"
    """SentencePiece's model."""
    vocab_size: int = Field(gt=0)
    """Tokens in all, special tokens and byte pieces included."""
    byte_fallback: bool = True
    """Write what the vocabulary lacks as bytes, so that every text comes back as it was; else it becomes ``<unk>``."""
    character_coverage: float = Field(default=0.9995, ge=0.98, le=1)
    """Share of the characters read that get tokens of their own, the frequent first; SentencePiece wants 0.98 or up."""
    max_sentences: int = Field(default=1_000_000, gt=0)
    """Pieces of text of up to about 1000 characters that are held in memory: a uniform sample of all that is read."""
    max_documents: int | None = Field(default=None, gt=0)
    """Documents to read, from the sources in turn; unset: all of them."""

    @rule
    def _room_for_pieces(self) -> Iterator[str]:
        taken = NUM_SPECIAL_TOKENS + (NUM_BYTES if self.byte_fallback else 0)
        if self.vocab_size <= taken:
            what = f"{NUM_SPECIAL_TOKENS} special tokens" + (f" and {NUM_BYTES} bytes" if self.byte_fallback else "")
            yield f"vocab_size ({self.vocab_size}) must be above {taken}: {what} come first"


class Recipe(Section):
    """One distillation, from teacher and data to the exported student."""

    name: str = Field(default_factory=open_value, min_length=1, pattern=r"^[\w.-]+$")
    """What the run is called; unset: as the recipe's file, without its ending."""
    seed: int = Field(default=0, ge=0)
    """Of all that is drawn: new weights, the order of the data, dropout."""
    output_dir: Path = Field(default_factory=open_value)
    """The folder of the run; unset: ``runs/NAME``."""
    shared_phases: Path | None = None
    """A folder in which runs find each other's phases up to Stage II: one that another run completed with the same
    inputs is taken from there, one that it is at is waited for. Unset: a run does all of its own."""
    deepspeed: Path = Field(default_factory=open_value)
    """DeepSpeed JSON of all trained phases: a file, or the name of one that ships (``zero2``); unset, or ``auto``: the
    first of those that ship by which all phases fit."""
    pipeline: Pipeline = Pipeline()
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What both models compute in; losses, and weights while they train, are fp32 in any case."""
    tf32: bool = False
    """Matrix products of fp32 values on GPUs: true drops 13 of 23 bits for several times the speed. False, as fp32 is
    chosen for its bits: what is promised of ranks and layouts holds to fp32 rounding. Nothing changes on a CPU."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time; on a GPU slower, and without it runs that are repeated or
    resumed differ by rounding there."""
    attention: Literal["auto", "eager", "sdpa", "flash", "packed"] = "auto"
    """How both models compute attention: ``auto`` is what transformers chooses; ``flash`` needs a GPU, the flash-attn
    package and 16-bit precision; ``packed`` is for isolated documents: each by itself, without a mask over its row, on
    a GPU by torch's own flash kernel."""
    activation_checkpointing: bool = False
    """Keep only each trained block's input for the backward pass and compute the rest again: less memory, more time."""
    torch_compile: bool = False
    """Compile the blocks of models that are whole on every rank (not ZeRO-3) with ``torch.compile``."""
    task: Task = Field(default_factory=open_value, discriminator="kind")
    data: Data
    teacher: Teacher
    student: Student
    layer_map: LayerMap = LayerMap()
    filters: Filters | None = None
    distill: Distill = Field(default_factory=open_value)
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    checkpoint: Checkpoint = Checkpoint()
    replay: Replay = Replay()
    export: Literal["best", "last"] = "last"
    """Which model a phase that trains one leaves, and so which student is exported: of those scored
    (``evaluation.every_steps``) that with the best held-out score, or the last. Filters are always the last."""
    stop_after_minutes: float | None = Field(default=None, gt=0)
    """Save and stop after so much wall-clock time, with the exit code for "start me again" (75); set it below a batch
    system's limit by what a step and a save take."""
    tokenizer: TokenizerTraining | None = None
    """Read by ``ted-ds tokenizer train`` alone."""
    study: Study | None = None
    """Read by ``ted-ds study`` and ``ted-ds check``."""
    max_consecutive_skips: int = Field(default=5, ge=0)
    """Steps in a row that may be skipped for a loss or gradient that is not finite, before the run stops."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """What to do when the teacher or its weights fail the checks before the first step (see ``ted-ds doctor``)."""
    collective_timeout_s: float = Field(default=1800, ge=1)
    """How long a rank waits for the others, or for a disk, before it gives up; then the run ends, and the same command
    goes on from the last checkpoint."""

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _may_be_the_name_of_one_that_ships(cls, file: Any) -> Any:
        return named(file, DEEPSPEED, ".json") if isinstance(file, str) else file

    @property
    def leaves_open(self) -> bool:
        """As of any section; and the filters of ``ted`` follow, too."""
        return super().leaves_open or (self.distill.needs.filters and self.filters is None)

    @rule
    def _filters_are_solved_for_a_head(self) -> Iterator[str]:
        reason = self.task.why_no_ridge
        if self.filters is not None and self.filters.are_solved and reason is not None:
            yield f"filters.initialisation: ridge: {reason}"

    @rule
    def _every_method_has_its_term(self) -> Iterator[str]:
        method, distill = self.distill.method, self.distill
        if method == "sft" and highest(distill.task_weight) == 0:
            yield "distill.task_weight: 0: method: sft trains on the task alone; use a weight above 0"
        if method == "kd" and not distill.needs.relations and highest(distill.kl_weight) == 0:
            yield "distill.method: kd needs a kl_weight above 0; without a teacher it is sft"
        if method in ("lwd", "ted") and highest(distill.feature_weight) == 0:
            yield f"distill.feature_weight: 0: method: {method} matches layers; use a weight above 0, or method: kd"

    @rule
    def _cached_examples_come_again(self) -> Iterator[str]:
        if self.teacher.cache is not None:
            yield from self.teacher.cache.mistakes_beside(self.task, self.distill)

    @rule
    def _transfer_texts_teach_something(self) -> Iterator[str]:
        if self.data.transfer is None:
            return
        if self.task.why_no_transfer is not None:
            yield f"data.transfer: {self.task.why_no_transfer}"
            return
        if not self.distill.needs.teacher:
            yield (
                "data.transfer: distill.method: sft has no teacher, and no labels of these texts are read; remove it, "
                "or use method kd, lwd or ted"
            )
        columns = self.task.text_columns
        for index, source in enumerate(self.data.transfer):
            own = source.text_columns(columns)
            if len(own) != len(columns):
                yield (
                    f"data.transfer[{index}].text_column: {counted(len(own), 'column')}, task.text_column "
                    f"names {len(columns)}; name as many, in the same order"
                )

    @rule
    def _stages_hold_the_teacher(self) -> Iterator[str]:
        yield from self.pipeline.mistakes_beside(self.teacher, self.student, self.distill, self.precision)

    @rule
    def _a_precision_can_be_measured(self) -> Iterator[str]:
        if self.teacher.precision is not None:
            stages = self.pipeline.stages
            yield from precision_mistakes(self.teacher, self.student, self.distill, self.task, num_stages=stages)

    @rule
    def _steps_can_be_repeated(self) -> Iterator[str]:
        yield from self.replay.mistakes_beside(deterministic=self.deterministic, num_stages=self.pipeline.stages)

    @rule
    def _relations_are_at_hand(self) -> Iterator[str]:
        if not self.distill.needs.relations:
            return
        place = "distill.relation_weight"
        if self.teacher.cache is not None:
            yield f"{place}: the cache holds no queries, keys and values; remove teacher.cache, or the weight"
        if self.torch_compile:
            yield f"{place}: compiled blocks hand over no queries, keys and values; set torch_compile to false"

    @rule
    def _flash_is_for_16_bits(self) -> Iterator[str]:
        if self.attention == "flash" and self.precision == "fp32":
            yield "attention: flash needs precision bf16 or fp16; use sdpa with fp32"

    @rule
    def _packed_is_for_isolated_documents(self) -> Iterator[str]:
        if self.attention == "packed" and not self.task.isolates_documents:
            yield "attention: packed is for sequences of several isolated documents, and there are none; use sdpa"

    @rule
    def _temperature_softens_something(self) -> Iterator[str]:
        if not self.task.softened and "temperature" in self.distill.model_fields_set:
            yield f"distill.temperature: {self.task.kind} outputs are compared as numbers; remove it"

    @rule
    def _divergence_has_distributions(self) -> Iterator[str]:
        if not self.task.softened and self.distill.divergence != "kl":
            yield (
                f"distill.divergence: {self.distill.divergence}: {self.task.kind} outputs are compared as numbers, not "
                "as distributions; remove it"
            )

    @rule
    def _tests_fit_the_task(self) -> Iterator[str]:
        if self.evaluation.lm_eval and not self.task.predicts_next_token:
            yield f"evaluation.lm_eval: a {self.task.kind} does not predict the next token of a text; remove it"
        taken = self.data.beside.keys()
        for within, name, test in self.evaluation.tests:
            place = f"evaluation.{within}"
            window = test.window or self.task.sequence_length
            if not self.task.predicts_next_token:
                yield f"{place}: a {self.task.kind} does not predict the next token of a text; remove it"
            if name in taken:
                yield f"{place}: metrics called {name}/... are those of data.{name}; use another name"
            if isinstance(test, StridedPerplexity) and test.stride is not None and test.stride >= window:
                yield f"{place}.stride: {test.stride} must be below the window ({window}), for something to go before"

    @rule
    def _the_best_is_scored_and_kept(self) -> Iterator[str]:
        if self.export == "best" and self.evaluation.every_steps is None:
            yield "export: best needs evaluation.every_steps: only what is scored during training can be the best"
        if self.export == "best" and not self.checkpoint.keep_best:
            yield "export: best is taken from the checkpoint that checkpoint.keep_best keeps; set it to true"

    @rule
    def _steps_are_known_or_counted(self) -> Iterator[str]:
        for path, plan in self.phase_plans().items():
            if plan.epochs is None and plan.max_steps is None:
                yield (
                    f"{path}.max_steps: this key is required: a {self.task.kind} packs documents as they come, and how "
                    "many steps a pass over them takes is known once all are read; give how many you want"
                    if self.task.packed
                    else f"{path}: give exactly one of max_steps (optimizer steps) and epochs (passes over the rows of "
                    "task data)"
                )
            if plan.epochs is not None and self.task.packed:
                yield (
                    f"{path}.epochs: {plan.epochs:g}: a {self.task.kind} packs documents as they come, and how many "
                    "sequences they make is known once all are read; give max_steps (a source of data.train may have "
                    "epochs, by which it ends)"
                )

    @rule
    def _lengths_differ(self) -> Iterator[str]:
        if self.task.packed and self.data.length_grouping.window_steps > 1:
            yield (
                f"data.length_grouping.window_steps: {self.data.length_grouping.window_steps}: the packed sequences of "
                f"a {self.task.kind} all have one length; remove it"
            )
        multiple = self.data.padding.multiple_of
        longest = -(-self.task.sequence_length // multiple) * multiple
        for path, plan in self.phase_plans().items():
            if plan.micro_batch_tokens is None:
                continue
            given = f"{path}.micro_batch_tokens: {plan.micro_batch_tokens}"
            if self.task.rows_per_example > 1:
                yield (
                    f"{given}: a {self.task.kind} has {self.task.rows_per_example} texts for each example; use "
                    "micro_batch_size"
                )
            elif self.task.packed:
                yield f"{given}: the packed sequences of a {self.task.kind} all have one length; use micro_batch_size"
            elif plan.micro_batch_tokens < longest:
                padded = f", padded to {longest}" if longest > self.task.sequence_length else ""
                yield (
                    f"{given}: a text of task.{self.task.length_key} ({self.task.sequence_length}{padded}) would not "
                    f"fit; use {longest} or more"
                )

    @property
    def order_seed(self) -> int:
        """What decides which data a step holds."""
        return self.seed if self.data.order_seed is None else self.data.order_seed

    def without_pipeline(self) -> Recipe:
        """The same on as many ranks without stages, each with its own data: batches are larger by so much."""
        stages = self.pipeline.stages

        def larger(plan: PhasePlan) -> PhasePlan:
            return plan.model_copy(update={"global_batch_size": plan.global_batch_size * stages})

        return self.with_plans(larger).model_copy(update={"pipeline": Pipeline()})

    def with_plans(self, change: Callable[[PhasePlan], PhasePlan]) -> Recipe:
        """The same with each of its plans changed, used or not."""
        parts: dict[str, Any] = {"distill": change(self.distill)}
        for name in ("teacher", "student"):
            part: Teacher | Student = getattr(self, name)
            if part.finetune is not None:
                parts[name] = part.model_copy(update={"finetune": change(part.finetune)})
        if self.filters is not None:
            plans = {name: change(plan) for name, plan in self.filters.plans.items()}
            parts["filters"] = self.filters.model_copy(update=plans)
        return self.model_copy(update=parts)

    def phase_plans(self) -> dict[str, PhasePlan]:
        """The plans this recipe will run, by their path in the recipe."""
        plans = {"teacher.finetune": self.teacher.finetune, "student.finetune": self.student.finetune}
        if self.distill.needs.filters and self.filters is not None:
            plans |= {f"filters.{name}": plan for name, plan in self.filters.plans.items()}
        plans["distill"] = self.distill
        return {path: plan for path, plan in plans.items() if plan is not None}
