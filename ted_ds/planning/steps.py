"""How many steps the epochs of a recipe's plans come to."""

from __future__ import annotations

from ted_ds.config.phase_plan import ALL, PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.data.row_counts import RowCount
from ted_ds.data.transfer import share_of
from ted_ds.errors import counted, raise_all


def counts_epochs(recipe: Recipe) -> bool:
    """Whether a plan of the recipe waits for the number of training rows."""
    return any(plan.epochs is not None for plan in recipe.phase_plans().values())


def counts_all_texts(recipe: Recipe, plan: PhasePlan) -> bool:
    """Whether the epochs of a plan are of all texts: training rows and those of ``data.transfer``, as they come."""
    return plan.takes_transfer and recipe.data.transfer is not None and isinstance(recipe.data.transfer_share, str)


def plan_with_rows(recipe: Recipe, plan: PhasePlan, num_rows: int, num_transfer: int | None = None) -> PhasePlan:
    """A plan of the recipe with its steps known for so many training rows, and texts of ``data.transfer``.

    It is as it was where their number decides and is None.
    """
    if counts_all_texts(recipe, plan):
        return plan if num_transfer is None else plan.with_rows(num_rows + num_transfer)
    share, others = ALL, recipe.data.transfer_share
    if plan.takes_transfer and recipe.data.transfer is not None and not isinstance(others, str):
        share -= share_of(others)
    return plan.with_rows(num_rows, share=share)


def with_rows(recipe: Recipe, num_rows: int, num_transfer: int | None = None) -> Recipe:
    """The recipe with the steps of all plans known for so many training rows, and texts of ``data.transfer``.

    Raises:
        ConfigError: A schedule does not fit into them; lists every one.
    """
    known = recipe.with_plans(lambda plan: plan_with_rows(recipe, plan, num_rows, num_transfer))
    raise_all([f"{path}: {line}" for path, plan in known.phase_plans().items() for line in plan.step_mistakes()])
    return known


def epochs_in_words(plan: PhasePlan, known: PhasePlan, count: RowCount | None) -> str:
    """What a plan's epochs come to.

    Args:
        plan: As the recipe has it.
        known: The same with its steps, where they are known.
        count: Of the training rows; None where it is not known.
    """
    epochs = counted(plan.epochs or 0, "epoch")
    if count is None or known.max_steps is None:
        return f"{epochs} = steps that are known once the data are read"
    return f"{epochs} of {count} = {count.how}{counted(known.steps, 'step')}"


def transfer_in_words(recipe: Recipe) -> str:
    """How many texts of a step of Stage II are of ``data.transfer``."""
    share, size = recipe.data.transfer_share, recipe.distill.global_batch_size
    if isinstance(share, str):
        return f"of each step of distill, as many of its {size} texts as come among all"
    number = share_of(share) * size
    return (
        f"of each step of distill, {'' if number.denominator == 1 else 'on average '}{float(number):g} of {size} texts"
    )
