"""What a recipe would use a model's family for that it is refused for (:attr:`ted_ds.models.family.Family.refused`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ted_ds.config.deepspeed import inspect_deepspeed_json
from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.config.schema import Recipe
from ted_ds.models.files import ModelFacts
from ted_ds.planning.memory import SHARDED_HOSTS


@dataclass(frozen=True)
class Use:
    """A use of a model, where the recipe asks for it."""

    place: str
    """In the recipe."""
    in_words: str
    """What the model would be or do."""
    remedy: str


def refused_uses(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None) -> Iterator[str]:
    """Every use that the recipe makes of a model whose family is refused for it: lines of the recipe."""
    is_cut = recipe.student.from_teacher is not None
    said: set[tuple[str, str]] = set()
    for side, facts in (("teacher", teacher), ("student", student)):
        if facts is None or not facts.family.refused:
            continue
        whose = "teacher" if is_cut else side
        for use, one in _uses(recipe, side).items():
            reason = facts.family.refused.get(use)
            if reason is not None and (use, whose) not in said:
                said.add((use, whose))
                yield (
                    f"{one.place}: the {whose} is a {facts.model_type}, which {one.in_words}, as {reason}; {one.remedy}"
                )


def _uses(recipe: Recipe, side: str) -> Mapping[str, Use]:
    """What a recipe uses one of its models for, by the words of :data:`ted_ds.models.family.USES`."""
    trains = side == "student" or recipe.teacher.finetune is not None
    task = recipe.task
    found = {
        task.architecture: Use(
            "task.kind", f"is not used for {task.kind} here", "use a model of another type, or another task"
        )
    }
    if side == "teacher" and recipe.student.from_teacher is not None:
        found["cut"] = Use("student.from_teacher", "cannot be cut by blocks here", "give student.path")
    cut = recipe.student.from_teacher
    if side == "teacher" and cut is not None and cut.is_measured:
        found["pipeline"] = Use(
            "student.from_teacher.choose",
            "cannot be run without some of its blocks here",
            "use spread or ends, or give blocks",
        )
    if side == "student" and recipe.student.heal is not None:
        found["heal"] = Use("student.heal", "cannot be healed here", "remove it")
    if _shards(recipe, side, trains=trains):
        found["zero3"] = Use(
            _place_of_sharding(recipe, trains=trains),
            "cannot be sharded by ZeRO-3 here",
            "use a DeepSpeed JSON of ZeRO stage 0, 1 or 2, and teacher.host: replica",
        )
    if recipe.pipeline.stages > 1:
        found["pipeline"] = Use(
            "pipeline.stages", "cannot be cut into stages of a pipeline here", "use pipeline.stages: 1"
        )
    if task.isolates_documents:
        found["isolated documents"] = Use(
            task.place_of_isolation, "cannot keep documents in one sequence apart here", task.without_isolation
        )
    if recipe.data.padding.side == "left":
        found["padding on the left"] = Use("data.padding.side", "is not padded on the left here", "use right")
    if recipe.activation_checkpointing and trains:
        found["activation checkpointing"] = Use(
            "activation_checkpointing", "cannot compute its activations again here", "set it to false"
        )
    if recipe.torch_compile:
        found["torch_compile"] = Use("torch_compile", "is not compiled here", "remove it")
    if side == "student" and recipe.student.lora is not None:
        found["adapters"] = Use("student.lora", "takes no adapters here", "remove it, and train all weights")
    if side == "teacher" and recipe.teacher.host == "int8":
        found["int8"] = Use("teacher.host", "is not held in 8 bits here", "use replica or zero3")
    return found


def _shards(recipe: Recipe, side: str, *, trains: bool) -> bool:
    is_hosted = side == "teacher" and recipe.teacher.host in SHARDED_HOSTS
    return is_hosted or (trains and _trains_sharded(recipe)) or recipe.pipeline.stages > 1


def _trains_sharded(recipe: Recipe) -> bool:
    config, _ = inspect_deepspeed_json(recipe.deepspeed)
    return config is not None and zero_stage(config) == 3


def _place_of_sharding(recipe: Recipe, *, trains: bool) -> str:
    if trains and _trains_sharded(recipe):
        return "deepspeed"
    return "pipeline.stages" if recipe.pipeline.stages > 1 else "teacher.host"
