"""The verb ``check``: every mistake of a recipe at once, and what it comes to. Needs neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.plan import describe, plan_recipe
from ted_ds.planning.traffic import Link, describe_traffic
from ted_ds.tasks.kind import kind_of


def check(recipe_path: str, overrides: Sequence[str], *, num_ranks: int, link: Link | None) -> None:
    """Print the plan of a recipe; with the time that traffic over a ``link`` takes, where one is given.

    Raises:
        ConfigError: The recipe has mistakes; all of them.
    """
    recipe, plan = plan_recipe(recipe_path, overrides, kind_of, num_ranks=num_ranks, looks_up_hub=True)
    print(describe(recipe, plan, num_ranks=num_ranks))
    print(describe_memory(recipe, plan, num_ranks=num_ranks), end="")
    if link is not None:
        print(describe_traffic(recipe, plan, link, num_ranks=num_ranks), end="")
