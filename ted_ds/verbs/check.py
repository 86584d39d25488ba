"""The verb ``check``: every mistake of a recipe at once, and what it comes to. Needs neither torch nor a GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ted_ds.output.wrapped import columns_of, wrapped
from ted_ds.planning.cache_size import describe_cache
from ted_ds.planning.deepspeed_choice import describe_choice
from ted_ds.planning.hosting import describe_memory
from ted_ds.planning.model_sizes import describe_sizes
from ted_ds.planning.plan import plan_recipe
from ted_ds.planning.plan_in_words import describe
from ted_ds.planning.ridge_work import describe_ridge
from ted_ds.planning.study_plan import describe_study, plan_study
from ted_ds.planning.traffic import Link, describe_traffic
from ted_ds.planning.work import Pace, describe_work
from ted_ds.tasks.kind import kind_of
from ted_ds.verbs.shown_recipe import shown_recipe


def show(recipe_path: str, overrides: Sequence[str], *, num_ranks: int) -> None:
    """Print a recipe as it will run, with where each value is from.

    Raises:
        ConfigError: It has mistakes; all of them.
    """
    recipe, plan = plan_recipe(recipe_path, overrides, kind_of, num_ranks=num_ranks, looks_up_hub=True)
    print(shown_recipe(recipe, plan, num_ranks=num_ranks), end="")


def check(
    recipe_path: str, overrides: Sequence[str], *, num_ranks: int, tflops: float, link_gbit: float | None
) -> None:
    """Print the plan of a recipe.

    Args:
        recipe_path: Its file.
        overrides: Changes to it.
        num_ranks: Ranks it is for.
        tflops: What each is assumed to compute, in 10^12 operations a second.
        link_gbit: What each sends to other hosts, in Gbit/s: then also the time that traffic takes.

    Raises:
        ConfigError: The recipe has mistakes, or an arm of its study; all of them.
    """
    recipe, plan = plan_recipe(recipe_path, overrides, kind_of, num_ranks=num_ranks, looks_up_hub=True)
    study = None if recipe.study is None else plan_study(recipe_path, overrides, kind_of)
    parts = [
        f"{describe(recipe, plan, num_ranks=num_ranks)}\n",
        describe_sizes(recipe, plan),
        describe_work(recipe, plan, Pace(num_ranks, tflops)),
        describe_ridge(recipe, plan),
        describe_cache(recipe, plan.teacher, num_layers=len(plan.layer_pairs), dim=plan.filter_dim),
        describe_choice(recipe, plan, num_ranks=num_ranks),
        describe_memory(recipe, plan, num_ranks=num_ranks),
    ]
    if link_gbit is not None:
        parts.append(describe_traffic(recipe, plan, Link(link_gbit, tflops), num_ranks=num_ranks))
    if study is not None:
        parts.append(describe_study(study))
    print(wrapped("".join(parts), columns_of(sys.stdout)), end="")
