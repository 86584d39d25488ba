"""What a recipe's ``student.freeze_blocks`` comes to: what does not train, and what both models run but once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.models.files import ModelFacts
from ted_ds.models.parameters import Parameters
from ted_ds.numerics.layer_map import LayerPairs, number_of
from ted_ds.planning.cut_facts import known_blocks
from ted_ds.planning.relations import relation_blocks

PLACE = "student.freeze_blocks"
DROPPED = ("hidden", "attention")
"""What of the first blocks ``student.dropout`` may say to be dropped."""


@dataclass(frozen=True)
class SharedBlocks:
    """The first blocks that both models run once in Stage II."""

    number: int
    reason: str | None = None
    """Why these are not all that are frozen, in words; None where they are."""


def freeze_mistakes(recipe: Recipe, student: ModelFacts | None, pairs: LayerPairs) -> Iterator[str]:
    """What keeps the first blocks of the student from being frozen, in lines of the recipe.

    ``pairs`` are those of the layer map, where layers are matched.
    """
    number = recipe.student.freeze_blocks
    if number is None or student is None:
        return
    if student.family.is_stacked:
        yield (
            f"{PLACE}: {number}: a {student.model_type} has an encoder and a decoder, of which no first blocks are "
            "frozen here; remove it"
        )
    elif student.family.num_shared_key is not None:
        yield (
            f"{PLACE}: {number}: the layers of this {student.model_type} share their blocks, which would all be "
            "frozen; remove it"
        )
    elif number >= student.num_blocks:
        blocks = counted(student.num_blocks, "block")
        most = f"use at most {student.num_blocks - 1}" if student.num_blocks > 1 else "remove it"
        yield f"{PLACE}: {number}: the student has {blocks}, and one at least has to train; {most}"
    elif recipe.distill.balance is not None and recipe.distill.needs.teacher:
        yield from _balanced_mistakes(recipe, number, student, pairs)


def _balanced_mistakes(recipe: Recipe, number: int, student: ModelFacts, pairs: LayerPairs) -> Iterator[str]:
    """Whether gradients of terms would be compared on a block that has none (:mod:`ted_ds.models.shared_block`)."""
    layers = [own for layer, _ in pairs if (own := number_of(layer)) > 0]
    if recipe.distill.needs.relations and recipe.distill.relation_layers is not None:
        layers.append(recipe.distill.relation_layers[0])
    first = min(layers, default=student.num_blocks)
    if first <= number:
        most = f"use at most {first - 1}" if first > 1 else "remove it"
        yield (
            f"{PLACE}: {number}: distill.balance compares gradients on block {first} of the student (counted from 1), "
            f"the last one that all terms reach; {most}, match later layers alone, or give weights without balance"
        )


def frozen_sizes(
    recipe: Recipe, student: Parameters, *, blocks_before: int = 0, frozen_head: int = 0
) -> tuple[list[int], int]:
    """Sizes of what trains behind the frozen blocks, and how many parameters do not.

    In a pipeline, of a share with so many ``blocks_before`` it; ``frozen_head`` are those of a head that is the
    embeddings, where these are elsewhere.
    """
    trained = student.sizes_behind(max((recipe.student.freeze_blocks or 0) - blocks_before, 0))
    if frozen_head:
        trained.remove(frozen_head)
    return trained, student.total - sum(trained)


def num_frozen_blocks(recipe: Recipe, side: str) -> int:
    """Of a model that trains: how many of its first blocks do not."""
    return (recipe.student.freeze_blocks or 0) if side == "student" else 0


def shared_blocks(recipe: Recipe, teacher: ModelFacts, student: ModelFacts) -> SharedBlocks:
    """The first blocks that both models run once in Stage II, as far as files and recipe say.

    A run looks at the weights, too.
    """
    frozen, cut = recipe.student.freeze_blocks, recipe.student.from_teacher
    if frozen is None or cut is None:
        return SharedBlocks(0)
    reason = why_apart(recipe, teacher, student)
    if reason is not None:
        return SharedBlocks(0, reason)
    known = known_blocks(cut, teacher)
    if known is None:
        return SharedBlocks(0, "which of the teacher's blocks the student's are is known once they are chosen")
    found = first_looked_at(recipe, teacher, student)
    blocks = known[""][:frozen]
    own = next((number for number, block in enumerate(blocks) if block != number), frozen)
    if own < min(frozen, found):
        return SharedBlocks(own, f"block {own} of the student is block {blocks[own]} of the teacher")
    return SharedBlocks(min(frozen, found), of_relations(found) if found < frozen else None)


def within_stages(shared: SharedBlocks, borders: Iterable[tuple[int, int]]) -> SharedBlocks:
    """What of them is run once where a pipeline is cut behind so many blocks of the student, and of the teacher."""
    for own, other in borders:
        if own != other and min(own, other) < shared.number:
            shared = SharedBlocks(
                min(own, other), f"a pipeline stage begins behind block {own} of the student and {other} of the teacher"
            )
    return shared


def is_lent(shared: SharedBlocks, border: tuple[int, int]) -> bool:
    """Whether one state crosses a border between pipeline stages for both models."""
    own, other = border
    return 0 < own == other <= shared.number


def first_looked_at(recipe: Recipe, teacher: ModelFacts, student: ModelFacts) -> int:
    """How many of the teacher's first blocks are looked at from outside alone, and not into."""
    if not recipe.distill.needs.relations:
        return teacher.num_blocks
    return relation_blocks(recipe, student, teacher)["teacher"] - 1


def of_relations(number: int) -> str:
    """Why no more blocks are shared than so many."""
    return f"the attention of the teacher's block {number} (counted from 0) is compared"


def why_apart(recipe: Recipe, teacher: ModelFacts, student: ModelFacts) -> str | None:
    """Why the teacher runs its first blocks itself, whatever the student's are; None where it need not.

    What a run alone knows (weights, where the teacher is) is left out.
    """
    cut, family = recipe.student.from_teacher, teacher.family
    if not recipe.distill.needs.teacher:
        return "no teacher runs in Stage II"
    if recipe.teacher.cache is not None:
        return "no teacher runs beside the student, as its cache is read"
    if cut is not None and cut.widths:
        return "the student is narrower than its teacher"
    if recipe.student.heal is not None:
        return "the student's blocks are healed"
    if recipe.teacher.host == "int8":
        return "the teacher computes in 8 bits"
    reason = family.unstaged or family.refused.get("pipeline")
    if reason is not None:
        return f"this {teacher.model_type} does not run without its first blocks: {reason}"
    return _dropout(recipe, student)


def _dropout(recipe: Recipe, student: ModelFacts) -> str | None:
    """That the student drops something while it trains, by its config and the recipe."""
    given = recipe.student.dropout.given
    for what in DROPPED:
        keys = student.family.dropout_keys(what, recipe.task.architecture)
        found = {key: given.get(what, student.dropped.get(key, 0.0)) for key in keys}
        for key, share in found.items():
            if share:
                return dropped_in_words(recipe, student, f"{key} {share:g}")
    return None


def dropped_in_words(recipe: Recipe, student: ModelFacts, what: str) -> str:
    """That what the student drops in training keeps it from lending its states, and how to take it away."""
    settings = [one for one in DROPPED if student.family.dropout_keys(one, recipe.task.architecture)]
    remedy = ", ".join(f"{one}: 0" for one in settings)
    text = f"the student has dropout ({what}) while it trains, and the teacher has none"
    return f"{text} (student.dropout: {{{remedy}}} would take it away)" if remedy else text


def freeze_in_words(recipe: Recipe, student: ModelFacts, shared: SharedBlocks) -> str:
    """What of a student with frozen blocks does not train, and what Stage II runs once, for ``ted-ds check``."""
    model = student.as_language_model if recipe.task.has_lm_head else student.as_classifier
    trained, num_frozen = frozen_sizes(recipe, model)
    share = 100 * num_frozen / max(num_frozen + sum(trained), 1)
    blocks = f"{recipe.student.freeze_blocks} of the student's {counted(student.num_blocks, 'block')}"
    text = f"embeddings and the first {blocks}, {num_frozen:,} parameters ({share:.2g} %)"
    return f"{text}; {in_words(shared, condition=', if their weights are equal')}"


def in_words(shared: SharedBlocks, *, condition: str = "") -> str:
    """What Stage II runs once, and on which ``condition``."""
    if not shared.number:
        return f"the teacher runs its own, as {shared.reason}"
    blocks = "block" if shared.number == 1 else f"{shared.number} blocks"
    more = "" if shared.reason is None else f", and no more, as {shared.reason}"
    return f"Stage II runs embeddings and the first {blocks} once for both models{condition}{more}"
