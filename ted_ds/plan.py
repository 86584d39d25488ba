"""What a recipe will do, and every mistake in it that shows without a GPU, weights or torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ted_ds.config.deepspeed import complete, read_deepspeed_json, zero_stage
from ted_ds.config.schema import CausalLm, Recipe, SequenceClassification
from ted_ds.data.sources import HUB_NAME, locate
from ted_ds.data.tokenizers import describe_difference, read_vocabulary
from ted_ds.errors import CheckpointError, ConfigError, TedError
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.numerics.layer_map import LayerPairs, make_layer_map

Result = TypeVar("Result")
CAUSAL_LM_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
KNOWN_TYPES = (*CAUSAL_LM_TYPES, "bert", "deberta-v2")
PHASES = (
    "finetune_teacher",
    "cut_student",
    "finetune_student",
    "filters_teacher",
    "filters_student",
    "distill",
    "evaluate",
    "export",
)


@dataclass(frozen=True)
class Plan:
    """What the recipe comes to."""

    phases: tuple[str, ...]
    teacher: ModelFacts | None
    """None while the teacher is a hub name that is not fetched yet."""
    student: ModelFacts | None
    layer_pairs: LayerPairs
    filter_dim: int
    """Width in which layers are matched; 0 where nothing is matched."""


def local_model(path: str) -> Path | None:
    """The folder a model path names; None for a hub name.

    Raises:
        ConfigError: It is neither.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_NAME.match(path):
        raise ConfigError(f"{path}: no such model folder")
    return None


def make_plan(recipe: Recipe, *, num_ranks: int = 1, source: str = "recipe") -> Plan:
    """Check the recipe against the files it names, and lay out the run.

    Args:
        recipe: The recipe.
        num_ranks: Data-parallel ranks the batches must divide over.
        source: The recipe's file, for messages.

    Raises:
        ConfigError: Lists every mistake found.
    """
    problems: list[str] = []

    def attempt(where: str, work: Callable[[], Result]) -> Result | None:
        try:
            return work()
        except (TedError, ValueError) as error:
            lines = str(error).splitlines()
            problems.extend(f"{where}: {line}" if where else line for line in lines)
            return None

    _check_deepspeed(recipe, num_ranks, attempt)
    for part, sources in (("train", recipe.data.train), ("evaluation", recipe.data.evaluation or [])):
        for index, one in enumerate(sources):
            attempt(f"data.{part}[{index}].path", functools.partial(locate, one))
    if recipe.output_dir.exists() and not recipe.output_dir.is_dir():
        problems.append(f"output_dir: {recipe.output_dir} is a file; give a folder")

    teacher_dir = attempt("teacher.path", lambda: local_model(recipe.teacher.path))
    teacher = attempt("teacher.path", lambda: read_model_facts(teacher_dir)) if teacher_dir else None
    student_dir, student = teacher_dir, None
    if recipe.student.path is not None:
        path = recipe.student.path
        student_dir = attempt("student.path", lambda: local_model(path))
        student = attempt("student.path", lambda: read_model_facts(student_dir)) if student_dir else None
    elif teacher is not None:
        student = attempt("student.from_teacher.blocks", lambda: _cut_facts(recipe, teacher))

    if teacher is not None:
        attempt("teacher.path", lambda: _check_model(recipe, teacher))
    if student is not None and recipe.student.path is not None:
        attempt("student.path", lambda: _check_model(recipe, student))
    if teacher is not None:
        attempt("teacher.path", lambda: _check_teacher_labels(recipe, teacher))
    if student is not None and recipe.student.path is not None and recipe.student.finetune is None:
        attempt("student.path", lambda: _check_label_order(recipe, student))
    layer_pairs: LayerPairs = ()
    filter_dim = 0
    if teacher is not None and student is not None:
        if student_dir != teacher_dir and student_dir is not None and teacher_dir is not None:
            attempt("student.path", lambda: _check_tokenizers(teacher_dir, student_dir))
        if (
            recipe.task.kind == "causal_lm"
            and recipe.distill.method != "sft"
            and teacher.vocab_size != student.vocab_size
        ):
            problems.append(
                f"student.path: predicts {student.vocab_size} ids, the teacher {teacher.vocab_size}; predictions are "
                "compared id by id: use a student with the teacher's vocab_size"
            )
        if recipe.distill.method in ("lwd", "ted"):
            layer_pairs = attempt("", lambda: _layer_pairs(recipe, student, teacher)) or ()
            filter_dim = (recipe.filters.dim if recipe.filters and recipe.distill.method == "ted" else None) or (
                teacher.hidden_size
            )
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return Plan(_phases(recipe), teacher, student, layer_pairs, filter_dim)


def _check_deepspeed(recipe: Recipe, num_ranks: int, attempt: Callable[[str, Callable[[], object]], object]) -> None:
    config = attempt("deepspeed", lambda: read_deepspeed_json(recipe.deepspeed))
    if not isinstance(config, dict):
        return
    for path, plan in recipe.phase_plans().items():
        attempt(
            "",
            lambda path=path, plan=plan: complete(
                config,
                plan,
                plan_path=path,
                precision=recipe.precision,
                world_size=num_ranks,
                source=recipe.deepspeed,
            ),
        )


def shards_frozen_models(recipe: Recipe, config: dict[str, object]) -> bool:
    """Whether frozen models are ZeRO-3 sharded."""
    hosting = recipe.teacher.hosting
    return hosting == "sharded" or (hosting == "auto" and zero_stage(config) == 3)


def _cut_facts(recipe: Recipe, teacher: ModelFacts) -> ModelFacts:
    cut = recipe.student.from_teacher
    assert cut is not None
    outside = [block for block in cut.blocks if block >= teacher.num_blocks]
    if outside:
        raise ConfigError(
            f"block {outside[0]} does not exist (the teacher has {teacher.num_blocks} blocks, numbered from 0); "
            f"use 0..{teacher.num_blocks - 1}"
        )
    return replace(teacher, num_blocks=len(cut.blocks))


def _check_model(recipe: Recipe, facts: ModelFacts) -> None:
    if facts.model_type not in KNOWN_TYPES:
        raise ConfigError(f"model type {facts.model_type!r} is not supported; use one of {', '.join(KNOWN_TYPES)}")
    if isinstance(recipe.task, CausalLm) and facts.model_type not in CAUSAL_LM_TYPES:
        raise ConfigError(f"a {facts.model_type} is no causal LM; use one of {', '.join(CAUSAL_LM_TYPES)}")
    if recipe.task.sequence_length > facts.max_positions:
        key = "sequence_length" if isinstance(recipe.task, CausalLm) else "max_length"
        raise ConfigError(
            f"task.{key} is {recipe.task.sequence_length}, but this model allows at most {facts.max_positions} tokens; "
            f"lower task.{key}"
        )


def _check_teacher_labels(recipe: Recipe, teacher: ModelFacts) -> None:
    if not isinstance(recipe.task, SequenceClassification) or recipe.teacher.finetune is not None:
        return
    if teacher.architectures and not any("SequenceClassification" in name for name in teacher.architectures):
        raise ConfigError(
            f"a {teacher.architectures[0]} has no classification head and its predictions would be random; "
            "fine-tune it on the task: add teacher.finetune"
        )
    _check_label_order(recipe, teacher)


def _check_label_order(recipe: Recipe, facts: ModelFacts) -> None:
    if not isinstance(recipe.task, SequenceClassification):
        return
    if facts.num_labels not in (None, len(recipe.task.labels)):
        raise ConfigError(f"it has {facts.num_labels} labels, task.labels has {len(recipe.task.labels)}; give as many")
    if facts.labels is not None and list(facts.labels) != recipe.task.labels:
        raise ConfigError(
            f"its labels are {list(facts.labels)}, task.labels are {recipe.task.labels}; predictions are compared by "
            "id: give task.labels in the model's order"
        )


def _check_tokenizers(teacher: Path, student: Path) -> None:
    of_teacher, of_student = read_vocabulary(teacher), read_vocabulary(student)
    if of_teacher is not None and of_student is not None:  # slow tokenizers are compared when they are loaded
        refuse_different_tokenizers(of_teacher, of_student)


def refuse_different_tokenizers(teacher: dict[str, int], student: dict[str, int]) -> None:
    """Compare two vocabularies.

    Raises:
        CheckpointError: They differ.
    """
    difference = describe_difference(teacher, student)
    if difference is not None:
        raise CheckpointError(
            f"teacher and student have different tokenizers ({difference}); use a student with the teacher's tokenizer"
        )


def _layer_pairs(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> LayerPairs:
    return make_layer_map(
        recipe.layer_map.kind,
        num_student_blocks=student.num_blocks,
        num_teacher_blocks=teacher.num_blocks,
        num_pairs=recipe.layer_map.num_pairs,
        pairs=recipe.layer_map.pairs,
    )


def _phases(recipe: Recipe) -> tuple[str, ...]:
    left_out = {
        "finetune_teacher": recipe.teacher.finetune is None,
        "cut_student": recipe.student.from_teacher is None,
        "finetune_student": recipe.student.finetune is None,
        "filters_teacher": recipe.distill.method != "ted",
        "filters_student": recipe.distill.method != "ted",
    }
    return tuple(phase for phase in PHASES if not left_out.get(phase, False))


def describe(recipe: Recipe, plan: Plan, *, num_ranks: int) -> str:
    """The plan in words, for ``ted-ds check``."""
    lines = [f"{recipe.name}: {recipe.task.kind} by {recipe.distill.method}, {num_ranks} ranks, {recipe.precision}"]
    for name, facts in (("teacher", plan.teacher), ("student", plan.student)):
        if facts is None:
            lines.append(f"{name:9} known once it is fetched from the hub")
        else:
            lines.append(f"{name:9} {facts.model_type}, {facts.num_blocks} blocks of width {facts.hidden_size}")
    if plan.layer_pairs:
        pairs = " ".join(f"{s}<-{t}" for s, t in plan.layer_pairs)
        lines.append(f"layers    student<-teacher {pairs}, matched in {plan.filter_dim} dimensions")
    lines.append(f"phases    {' > '.join(plan.phases)}")
    for path, phase in recipe.phase_plans().items():
        accumulation = phase.global_batch_size // (phase.micro_batch_size * num_ranks)
        tokens = phase.max_steps * phase.global_batch_size * recipe.task.sequence_length
        lines.append(
            f"{path:16} {phase.max_steps} steps x {phase.global_batch_size} sequences = "
            f"{num_ranks} ranks x {accumulation} microbatches x {phase.micro_batch_size}; at most {tokens:,} tokens"
        )
    lines.append(f"output    {recipe.output_dir}")
    return "\n".join(lines)
