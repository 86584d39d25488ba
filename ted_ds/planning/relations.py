"""Attention relations as a term: between which blocks, and what keeps a pair of models from having them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ted_ds.config.schema import Recipe
from ted_ds.errors import counted
from ted_ds.models.files import ModelFacts


def relation_blocks(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> dict[str, int]:
    """The number of each side's block, counted from 1: what the recipe says, or the last."""
    given = recipe.distill.relation_layers
    return dict(zip(("student", "teacher"), given or (student.num_blocks, teacher.num_blocks), strict=True))


def relation_mistakes(recipe: Recipe, teacher: ModelFacts | None, student: ModelFacts | None) -> Iterator[str]:
    """What keeps two models from being compared by their attention relations, in lines of the recipe."""
    distill = recipe.distill
    if not distill.needs.relations:
        return
    widths: dict[str, set[int]] = {}
    for index, (side, facts) in enumerate((("student", student), ("teacher", teacher))):
        if facts is None:
            continue
        if not facts.family.attention_maps:
            yield (
                f"distill.relation_weight: the {side} is a {facts.model_type}, of whose blocks it is not known here "
                "which maps put out queries, keys and values; remove it, or use a model of another type"
            )
            continue
        number = distill.relation_layers[index] if distill.relation_layers else facts.num_blocks
        if number > facts.num_blocks:
            yield (
                f"distill.relation_layers[{index}]: {number}: the {side} has {counted(facts.num_blocks, 'block')}; "
                "use 1 to "
                f"{facts.num_blocks}"
            )
            continue
        widths[side] = _widths(facts, number)
    common = math.gcd(*(width for of_side in widths.values() for width in of_side))
    if common % distill.relation_heads:
        shown = "; ".join(f"the {side}'s {' and '.join(map(str, sorted(own)))}" for side, own in widths.items())
        fitting = [str(number) for number in range(1, common + 1) if common % number == 0]
        yield (
            f"distill.relation_heads: {distill.relation_heads} does not divide the widths of queries, keys and values "
            f"({shown}); use one of {', '.join(fitting)}"
        )


def _widths(facts: ModelFacts, number: int) -> set[int]:
    """Of a block's queries, keys and values, as far as its files say."""
    (maps, *_), names = facts.parameters.maps[number - 1 : number] or ({},), facts.family.attention_maps
    found = (maps[name][1 if facts.family.maps_are_transposed else 0] for name in names if name in maps)
    return {width // 3 if len(names) == 1 else width for width in found}
