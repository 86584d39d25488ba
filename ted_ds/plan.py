"""What a recipe will do, and every mistake in it that shows without a GPU, weights or torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ted_ds.config.deepspeed import filled, inspect_deepspeed_json, remarks, zero_stage
from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import CausalLm
from ted_ds.config.without_effect import settings_without_effect
from ted_ds.contracts import Side, broken_contracts
from ted_ds.data.sources import HUB_NAME, is_remote, locate, names_hub
from ted_ds.errors import ConfigError, TedError, raise_all
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.numerics.layer_map import LayerPairs, make_layer_map
from ted_ds.staging import FILTER_PHASES, Stage, filter_phases, plan_stages

Result = TypeVar("Result")
CAUSAL_LM_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
EAGER_ATTENTION_TYPES = ("deberta-v2",)
KNOWN_TYPES = (*CAUSAL_LM_TYPES, "bert", "deberta-v2")
PLAN_OF_PHASE = {
    "finetune_teacher": "teacher.finetune",
    "finetune_student": "student.finetune",
    "filters_teacher": "filters.teacher",
    "filters_student": "filters.student",
    "filters_both": "filters.both",
    "distill": "distill",
}
"""Where the recipe says how a phase trains."""
PHASES = (
    "finetune_teacher",
    "cut_student",
    "finetune_student",
    "filters_teacher",
    "filters_student",
    "filters_both",
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
    stages: Mapping[str, tuple[Stage, ...]]
    """The pipeline stages of each phase that trains, one where there is no pipeline; empty while a model is unknown."""
    remarks: tuple[str, ...] = ()
    """What is worth saying of settings that are right."""


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


def make_plan(recipe: Recipe, *, num_ranks: int = 1, source: str = "recipe", contracts_hold: bool = True) -> Plan:
    """Check the recipe against the files it names, and lay out the run.

    Args:
        recipe: The recipe.
        num_ranks: Ranks the batches must divide over, once they are divided by the pipeline's stages.
        source: The recipe's file, for messages.
        contracts_hold: Whether models that break a contract (:mod:`ted_ds.contracts`) are a mistake.

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

    said = _check_deepspeed(recipe, num_ranks, attempt)
    for part, sources in (("train", recipe.data.train), ("evaluation", recipe.data.evaluation or [])):
        for index, one in enumerate(sources):
            if not is_remote(one.path) and not names_hub(one):  # those only once the run starts
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
    if contracts_hold:
        sides = model_sides(recipe, teacher_dir, teacher, student_dir, student)
        problems += [line for lines in broken_contracts(recipe, *sides).values() for line in lines]
    layer_pairs: LayerPairs = ()
    filter_dim = 0
    if teacher is not None and student is not None and recipe.distill.method in ("lwd", "ted"):
        layer_pairs = attempt("", lambda: _layer_pairs(recipe, student, teacher)) or ()
        own_dim = recipe.filters.dim if recipe.filters and recipe.distill.method == "ted" else None
        filter_dim = own_dim or teacher.hidden_size
    stages: Mapping[str, tuple[Stage, ...]] = {}
    if not problems and teacher is not None and student is not None:
        facts = {"student": student, "teacher": teacher}
        stages = attempt("", lambda: plan_stages(recipe, facts, layer_pairs, filter_dim)) or {}
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in dict.fromkeys(problems)))
    return Plan(
        _phases(recipe), teacher, student, layer_pairs, filter_dim, stages, (*settings_without_effect(recipe), *said)
    )


def _check_deepspeed(
    recipe: Recipe, num_ranks: int, attempt: Callable[[str, Callable[[], object]], object]
) -> tuple[str, ...]:
    """What is wrong goes to ``attempt``; what is worth saying comes back."""
    config, wrong = inspect_deepspeed_json(recipe.deepspeed)
    attempt("deepspeed", lambda: raise_all(wrong))
    if config is None:
        return ()
    attempt("torch_compile", lambda: _check_compile(recipe, config))
    attempt("pipeline.stages", lambda: _check_pipeline(recipe, config, num_ranks))
    for path, plan in recipe.phase_plans().items():
        attempt(
            "",
            lambda path=path, plan=plan: raise_all(
                filled(
                    config,
                    plan,
                    plan_path=path,
                    precision=recipe.precision,
                    world_size=max(num_ranks // recipe.pipeline.stages, 1),
                    source=recipe.deepspeed,
                )[1]
            ),
        )
    return tuple(remarks(config, recipe.phase_plans(), recipe.deepspeed))


def _check_compile(recipe: Recipe, config: dict[str, Any]) -> None:
    if recipe.torch_compile and zero_stage(config) == 3:
        raise ConfigError(
            f"{recipe.deepspeed} shards weights (ZeRO-3), which are gathered inside the blocks that would be compiled; "
            "use ZeRO stage 0, 1 or 2, or remove it"
        )


def _check_pipeline(recipe: Recipe, config: dict[str, Any], num_ranks: int) -> None:
    num_stages = recipe.pipeline.stages
    if num_stages == 1:
        return
    if num_ranks % num_stages:
        raise ConfigError(
            f"{num_stages} stages do not divide {num_ranks} ranks; use as many stages as ranks, or a divisor"
        )
    if zero_stage(config) > 1:
        raise ConfigError(
            f"{num_stages} stages, but {recipe.deepspeed} has ZeRO stage {zero_stage(config)}: DeepSpeed's pipelines "
            "work with ZeRO stage 0 or 1; use ds_configs/deepspeed/zero1.json"
        )
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        raise ConfigError(
            f"{num_stages} stages, but {recipe.deepspeed} offloads the optimizer, which is not supported with a "
            "pipeline; remove offload_optimizer"
        )


def _cut_facts(recipe: Recipe, teacher: ModelFacts) -> ModelFacts:
    cut = recipe.student.from_teacher
    assert cut is not None
    outside = [block for block in cut.blocks if block >= teacher.num_blocks]
    if outside:
        raise ConfigError(
            f"block {outside[0]} does not exist (the teacher has {teacher.num_blocks} blocks, numbered from 0); "
            f"use 0..{teacher.num_blocks - 1}"
        )
    return replace(teacher, num_blocks=len(cut.blocks), parameters=teacher.parameters.cut(cut.blocks))


def _check_model(recipe: Recipe, facts: ModelFacts) -> None:
    if facts.model_type not in KNOWN_TYPES:
        raise ConfigError(f"model type {facts.model_type!r} is not supported; use one of {', '.join(KNOWN_TYPES)}")
    if isinstance(recipe.task, CausalLm) and facts.model_type not in CAUSAL_LM_TYPES:
        raise ConfigError(f"a {facts.model_type} is no causal LM; use one of {', '.join(CAUSAL_LM_TYPES)}")
    if recipe.attention in ("sdpa", "flash") and facts.model_type in EAGER_ATTENTION_TYPES:
        raise ConfigError(f"a {facts.model_type} has no {recipe.attention} attention; use attention: auto")
    key = "sequence_length" if isinstance(recipe.task, CausalLm) else "max_length"
    multiple = recipe.data.padding.multiple_of
    longest = -(-recipe.task.sequence_length // multiple) * multiple
    if longest > facts.max_positions:
        padded = f", padded to {longest}" if longest > recipe.task.sequence_length else ""
        raise ConfigError(
            f"task.{key} is {recipe.task.sequence_length}{padded}, but this model allows at most "
            f"{facts.max_positions} tokens; lower task.{key}"
        )
    if recipe.data.padding.side == "left" and facts.model_type not in CAUSAL_LM_TYPES:
        raise ConfigError(f"data.padding.side is left, but a {facts.model_type} reads its first token; use right")


def model_sides(
    recipe: Recipe,
    teacher_dir: Path | None,
    teacher: ModelFacts | None,
    student_dir: Path | None,
    student: ModelFacts | None,
) -> tuple[Side | None, Side | None]:
    """The two models as contracts see them; None for one that is not known yet."""
    teacher_tuned = recipe.teacher.finetune is not None
    cut_from_tuned = recipe.student.from_teacher is not None and teacher_tuned
    tuned = {"teacher": teacher_tuned, "student": recipe.student.finetune is not None or cut_from_tuned}
    teacher_side, student_side = (
        Side(name, folder, facts, tuned[name]) if folder is not None and facts is not None else None
        for name, folder, facts in (("teacher", teacher_dir, teacher), ("student", student_dir, student))
    )
    return teacher_side, student_side


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
        **{phase: phase not in filter_phases(recipe) for phase in FILTER_PHASES},
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
    replicas = max(num_ranks // recipe.pipeline.stages, 1)
    readers = f"{replicas} " + ("ranks" if recipe.pipeline.stages == 1 else "in parallel")
    for path, phase in recipe.phase_plans().items():
        if phase.micro_batch_size is not None:
            accumulation = phase.global_batch_size // (phase.micro_batch_size * replicas)
            cut = f"{accumulation} microbatches x {phase.micro_batch_size}"
        else:
            cut = f"microbatches of at most {phase.micro_batch_tokens:,} padded tokens"
        tokens = phase.max_steps * phase.global_batch_size * recipe.task.sequence_length
        lines.append(
            f"{path:16} {phase.max_steps} steps x {phase.global_batch_size} sequences = "
            f"{readers} x {cut}; at most {tokens:,} tokens"
        )
    lines += [f"note      {remark}" for remark in plan.remarks]
    lines.append(f"output    {recipe.output_dir}")
    return "\n".join(lines)
