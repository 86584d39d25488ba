"""What ``launchers/quickstart.sh`` changes in its recipes: global batches that any number of ranks can share.

    python -m ted_ds.verbs.quickstart RECIPE RANKS [a.b=value ...]

prints the changes on one line; none where the recipe's own batches divide.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ted_ds.config.load import load_recipe
from ted_ds.errors import TedError


def fitting_batches(recipe_path: str, overrides: Sequence[str], *, num_ranks: int) -> list[str]:
    """Overrides that round each global batch up to whole microbatches on all ranks.

    Args:
        recipe_path: The recipe.
        overrides: Changes to it that are wanted anyway.
        num_ranks: Ranks that share a batch, or, under a pipeline, a multiple of its stages.

    Raises:
        ConfigError: The recipe is wrong.
    """
    recipe = load_recipe(recipe_path, overrides)
    replicas = max(num_ranks // recipe.pipeline.stages, 1)
    changes = []
    for path, plan in recipe.phase_plans().items():
        at_once = (plan.micro_batch_size or 1) * replicas
        fitting = -(-plan.global_batch_size // at_once) * at_once
        if fitting != plan.global_batch_size:
            changes.append(f"{path}.global_batch_size={fitting}")
    return changes


def main() -> int:
    """Print them; the exit code."""
    if len(sys.argv) < 3 or not sys.argv[2].isdecimal() or int(sys.argv[2]) < 1:
        print("usage: python -m ted_ds.verbs.quickstart RECIPE RANKS [a.b=value ...]", file=sys.stderr)
        return 2
    recipe_path, num_ranks, *overrides = sys.argv[1:]
    try:
        changes = fitting_batches(recipe_path, overrides, num_ranks=int(num_ranks))
    except TedError as error:
        print(f"quickstart: error:\n{error}", file=sys.stderr)
        return error.exit_code
    print(*changes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
