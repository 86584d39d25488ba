"""How much there is to train on, as far as it is told in a moment: by files that are here, or by cards of data sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from ted_ds.config.data import Data, Source
from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import Task
from ted_ds.data.reading.bytes import compression_of
from ted_ds.data.reading.listing import list_source
from ted_ds.data.row_counts import RowCount, count_training_rows
from ted_ds.data.rows import refuse_empty
from ted_ds.data.samples import Rows
from ted_ds.data.sources import is_remote, names_hub
from ted_ds.launching.starters import Told
from ted_ds.planning.mistakes import Mistakes
from ted_ds.planning.model_lookup import HubLookup
from ted_ds.planning.steps import counts_epochs, with_rows

BY_BYTES = ("json", "csv", "text")
"""Formats whose files are about as long as their texts."""


def count_rows(
    recipe: Recipe, rows_of: Callable[[Task], Rows], mistakes: Mistakes, hub: HubLookup | None
) -> RowCount | None:
    """The training rows, as far as they are quickly counted; only on the first rank, which says what is wrong.

    Args:
        recipe: The recipe.
        rows_of: Tells how a task's rows are read.
        mistakes: Gets what is wrong.
        hub: Where sizes of data sets of the hub may be found; None where they are left to the run.
    """
    if recipe.task.packed or Told.by(os.environ).rank != 0 or mistakes.found:
        return None
    if not counts_epochs(recipe) and hub is None:
        return None  # a run prints no passes
    count = mistakes.attempt("data.train", lambda: count_training_rows(recipe.data, rows_of(recipe.task)))
    if count is None and hub is not None and not mistakes.found:
        count = _rows_by_cards(recipe.data, hub, mistakes)
    if count is not None and count.num_heldout is not None:
        sizes = range(count.number), range(count.num_heldout)
        mistakes.attempt("", lambda: refuse_empty(recipe.data, *sizes))  # as a run would, once all is read
    if count is not None and recipe.task.sequences != "one":
        limit: Literal["least", "most"] = "least" if recipe.task.sequences == "more" else "most"
        count = replace(count, limit=limit)
    if count is not None and count.is_exact and count.limit is None:
        number = count.number
        mistakes.attempt("", lambda: with_rows(recipe, number))
    return count


def _rows_by_cards(data: Data, hub: HubLookup, mistakes: Mistakes) -> RowCount | None:
    sizes = [
        mistakes.attempt("", functools.partial(hub.size_of, one, f"data.train[{index}]"))
        for index, one in enumerate(data.train)
    ]
    known = [one.num_rows for one in sizes if one is not None]
    if len(known) < len(sizes):
        return None
    heldout = data.heldout_fraction if data.heldout_sources is None else 0.0
    return RowCount(round(sum(known) * (1 - heldout)), is_exact=False)


def corpus_bytes(data: Data, hub: HubLookup) -> dict[int, int]:
    """About how many bytes of text the sources of ``data.train`` have, by their places there, where that is known.

    Raises:
        DataError: A card of a data set says nothing of it, or a source is wrong.
    """
    sizes = {index: _bytes_of(source, f"data.train[{index}]", hub) for index, source in enumerate(data.train)}
    return {index: size for index, size in sizes.items() if size is not None}


def _bytes_of(source: Source, place: str, hub: HubLookup) -> int | None:
    if names_hub(source):
        said = hub.size_of(source, place)
        return None if said is None else said.num_bytes
    if is_remote(source.path):
        return None
    listing = list_source(source)
    is_plain = not any(compression_of(file.url) for file in listing.files)
    return listing.num_bytes if is_plain and listing.format in BY_BYTES else None
