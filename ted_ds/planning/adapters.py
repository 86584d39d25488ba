"""What a recipe's adapters come to: what trains, what cannot, and whether the teacher is the base they are beside."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ted_ds.config.nearest import nearest
from ted_ds.config.schema import Recipe
from ted_ds.models.adapter_targets import adapter_sizes, is_target, linear_maps
from ted_ds.models.files import ModelFacts
from ted_ds.models.folder import ADAPTER_FILE
from ted_ds.models.parameters import Parameters

WHOLE_HOSTS = ("auto", "replica")
"""Of a teacher whose weights may be those of the student's base: as in its files."""


def adapter_mistakes(recipe: Recipe, student: ModelFacts | None) -> Iterator[str]:
    """What keeps a student from being trained by adapters, or adapters from being merged, in lines of the recipe."""
    lora, has_peft = recipe.student.lora, importlib.util.find_spec("peft") is not None
    for side, path in (("teacher", recipe.teacher.path), ("student", recipe.student.path)):
        if path is not None and not has_peft and (Path(path) / ADAPTER_FILE).is_file():
            yield (
                f"{side}.path: {path} is an adapter, which peft merges into its base; it is not installed here: pip "
                "install 'ted_ds[lora]'"
            )
    if lora is None:
        return
    if not has_peft:
        yield "student.lora: needs peft, which is not installed here: pip install 'ted_ds[lora]'; or remove it"
    if student is None:
        return
    names = sorted({name for block in student.parameters.maps for name in linear_maps(block)})
    for index, target in enumerate(lora.targets or ()):
        if not any(is_target(name, [target]) for name in names):
            ends = {name.rpartition(".")[2] for name in names}
            meant = nearest(target, ends)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(names)}"
            yield (
                f"student.lora.targets[{index}]: {target}: no linear map in a block of this {student.model_type} is "
                f"called so; {hint}"
            )
    yield from _stacks_without(lora.targets, student)
    if lora.export == "adapter" and recipe.task.has_lm_head and not student.has_lm_head:
        yield "student.lora.export: adapter: its LM head starts new, and an adapter does not hold one; use merged"


def _stacks_without(targets: Sequence[str] | None, student: ModelFacts) -> Iterator[str]:
    """The stacks of an encoder-decoder in which nothing would train."""
    end = 0
    for stack, depth in student.blocks_of_stacks.items():
        maps, end = student.parameters.maps[end : end + depth], end + depth
        names = sorted({name for block in maps for name in linear_maps(block)})
        if stack and targets and not any(is_target(name, targets) for name in names):
            yield (
                f"student.lora.targets: {', '.join(targets)}: nothing of the {stack} would train, whose blocks have no "
                f"linear map called so; name some of each stack (here {', '.join(names)})"
            )


def adapted_sizes(recipe: Recipe, model: Parameters) -> tuple[list[int], int]:
    """Sizes of what trains of a student with adapters, and how many of its parameters do not.

    A head of labels trains in a copy of its own, beside the one the base has.
    """
    lora = recipe.student.lora
    assert lora is not None
    head = [] if recipe.task.has_lm_head else [*map(math.prod, model.label_heads)]
    return [*adapter_sizes(model.maps, lora.targets, lora.rank), *head], model.total


def trains_in_words(recipe: Recipe, student: ModelFacts) -> str | None:
    """How many parameters of the student train, for ``ted-ds check``; None without adapters."""
    lora = recipe.student.lora
    if lora is None:
        return None
    model = student.as_language_model if recipe.task.has_lm_head else student.as_classifier
    sizes, num_frozen = adapted_sizes(recipe, model)
    count = sum(sizes)
    where = ", ".join(lora.targets) if lora.targets else "all linear maps of its blocks"
    head = ""
    if not recipe.task.has_lm_head:
        head = ", and its head" if model.label_heads else ", and a new head (not counted)"
    teacher = "; the teacher is the same model with its adapters off, held once" if teaches_itself(recipe) else ""
    return (
        f"{count:,} parameters of the student, beside {num_frozen:,} that stay as they are "
        f"({100 * count / num_frozen:.2g} %): adapters of rank {lora.rank} on {where}{head}{teacher}"
    )


def teaches_itself(recipe: Recipe) -> bool:
    """Whether the teacher of Stage II is the very base of the student's adapters, and so need not be held beside it."""
    student, teacher = recipe.student, recipe.teacher
    return (
        student.lora is not None
        and recipe.distill.needs.teacher
        and student.path is not None
        and Path(student.path).resolve() == Path(teacher.path).resolve()
        and student.finetune is None
        and teacher.finetune is None
        and teacher.cache is None
        and teacher.host in WHOLE_HOSTS
    )
