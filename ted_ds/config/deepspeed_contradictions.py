"""How it is said that a DeepSpeed JSON gives a value of the recipe's otherwise, by the recipe's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ted_ds.config.phase_plan import PhasePlan

OWNERS = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "gradient_clipping",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.betas": "betas",
    "optimizer.params.eps": "eps",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.cycle_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "scheduler.params.total_num_steps": "max_steps",
}
"""The key of a phase's plan that owns a place in the JSON; the other places follow from several."""


def contradiction(
    path: str, given: Any, value: Any, *, plan: PhasePlan, plan_path: str, precision: str, source: Path
) -> str:
    """The message for a place of the JSON.

    Args:
        path: The place.
        given: What the JSON has there.
        value: What the recipe comes to there.
        plan: The phase's plan.
        plan_path: Where the plan stands in the recipe.
        precision: The recipe's.
        source: The JSON's path.
    """
    place = f"{source}: {path}: {given!r}"
    if path in ("bf16.enabled", "fp16.enabled"):
        wish = f"set precision: {path.partition('.')[0]}, or " if given is True else ""
        return f"{place} contradicts the recipe, whose precision is {precision}; {wish}write 'auto'"
    key = OWNERS.get(path)
    if key == "max_steps" and plan.epochs is not None:
        return f"{place}, but the steps are those that {plan_path}.epochs comes to; write 'auto'"
    if key is not None and key not in plan.model_fields_set and getattr(plan, key) is not None:
        own = f"{plan_path}.{key}"
        return f"{place}, but {own} is {getattr(plan, key)!r} (its default): set {own}: {given}, or write 'auto'"
    return f"{place} contradicts the recipe, which says {value!r}; write 'auto'"
