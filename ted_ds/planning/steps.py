"""How many steps the epochs of a recipe's plans come to."""

from __future__ import annotations

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.data.row_counts import RowCount
from ted_ds.errors import raise_all


def counts_epochs(recipe: Recipe) -> bool:
    """Whether a plan of the recipe waits for the number of training rows."""
    return any(plan.epochs is not None for plan in recipe.phase_plans().values())


def with_rows(recipe: Recipe, num_rows: int) -> Recipe:
    """The recipe with the steps of all plans known for so many training rows.

    Raises:
        ConfigError: A schedule does not fit into them; lists every one.
    """
    known = recipe.with_plans(lambda plan: plan.with_rows(num_rows))
    raise_all([f"{path}: {line}" for path, plan in known.phase_plans().items() for line in plan.step_mistakes()])
    return known


def epochs_in_words(plan: PhasePlan, count: RowCount | None) -> str:
    """What a plan's epochs come to; ``count`` is that of the training rows, None where it is not known."""
    epochs = f"{plan.epochs:g} epoch{'' if plan.epochs == 1 else 's'}"
    if count is None:
        return f"{epochs} = steps that are known once the data are read"
    return f"{epochs} of {count} = {count.how}{plan.with_rows(count.number).steps:,} steps"
