"""The DeepSpeed JSON of a recipe, with the sizes that follow from its student."""

from __future__ import annotations

from typing import Any

from ted_ds.config.deepspeed import read_deepspeed_json, with_sizes
from ted_ds.config.schema import Recipe
from ted_ds.planning.plan import Plan


def deepspeed_json_of(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The JSON as read; while the student is not fetched yet, its sizes are left to DeepSpeed.

    Raises:
        ConfigError: It is not readable, or anything in it is wrong; lists all of it.
    """
    student = plan.student
    return with_sizes(read_deepspeed_json(recipe.deepspeed), student.hidden_size if student is not None else None)
