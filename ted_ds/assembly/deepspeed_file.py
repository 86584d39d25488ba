"""Which DeepSpeed file this run has, where its recipe leaves that open: as the run began, or the first that fits."""

from __future__ import annotations

from dataclasses import replace

from ted_ds.assembly.host_teacher import machine_of
from ted_ds.config.schema import Recipe
from ted_ds.output.run_folder import Run
from ted_ds.planning.deepspeed_choice import DeepSpeedChoice, choose_deepspeed
from ted_ds.planning.plan import Plan
from ted_ds.planning.shipped_deepspeed import with_file
from ted_ds.runtime.world import World


def find_deepspeed(recipe: Recipe, plan: Plan, run: Run, world: World) -> tuple[Recipe, Run, DeepSpeedChoice | None]:
    """Decide, and remember a decision that was this program's. Every rank must call it.

    A run that is started again keeps it, whatever is free then.

    Args:
        recipe: The recipe.
        plan: Its plan, with both models known.
        run: What the output folder says of the run.
        world: The ranks.

    Returns:
        The recipe with its file, the run, and the choice, if there was one.
    """
    if not plan.chooses_deepspeed:
        return recipe, replace(run, deepspeed=None), None
    choice = choose_deepspeed(recipe, plan, machine_of(world), kept=run.deepspeed)
    return with_file(recipe, choice.name), replace(run, deepspeed=choice.name), choice
