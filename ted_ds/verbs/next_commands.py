"""What a person may want to do with a run that is complete, as commands to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ted_ds.config.schema import Recipe
from ted_ds.verbs.predict import can_be_predicted


def next_commands(recipe: Recipe, started_with: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of what it is for and the command.

    Args:
        recipe: The run's.
        started_with: Its recipe file and the changes to it.
    """
    folder = shlex.quote(str(recipe.output_dir))
    if can_be_predicted(recipe.task):
        yield "look at it", f"ted-ds predict {folder} 'a text'"
    yield "a page", f"ted-ds report {folder}"
    yield "its scores", f"ted-ds evaluate {shlex.join(started_with)}"
