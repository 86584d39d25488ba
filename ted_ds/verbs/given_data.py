"""Training data that is handed over in Python becomes a file of the run, which its recipe then names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ted_ds.config.given import AnyRecipe
from ted_ds.config.load import load_recipe
from ted_ds.data.given_rows import forget_rows, keep_rows
from ted_ds.errors import TedError
from ted_ds.output.run_folder import read_run
from ted_ds.runtime.rendezvous import find_ranks
from ted_ds.runtime.world import World
from ted_ds.verbs.prepare import JOIN_TIMEOUT_S


@contextlib.contextmanager
def with_rows(
    recipe: AnyRecipe, overrides: Sequence[str], rows: Iterable[Mapping[str, Any]] | None
) -> Iterator[list[str]]:
    """The overrides with which a recipe trains on ``rows``; None: on what it names. Every rank must call it.

    Where the run does not begin for a mistake, nothing is left of them.

    Raises:
        TedError: The recipe or the rows have mistakes; on every rank.
    """
    if rows is None:
        yield [*overrides]
        return
    find_ranks()
    world = World.join(JOIN_TIMEOUT_S)
    output_dir = world.agree(lambda: load_recipe(recipe, [*overrides, _named(Path("train_data"))]).output_dir)
    file, is_new = world.on_main(
        lambda: keep_rows(rows, output_dir, has_begun=read_run(output_dir) is not None)  # others read no rows
    )
    try:
        yield [*overrides, _named(file)]
    except TedError:
        if world.is_main and is_new and read_run(output_dir) is None:
            forget_rows(output_dir)
        raise


def _named(file: Path) -> str:
    return f"data.train=[{{path: {json.dumps(str(file.absolute()))}}}]"
