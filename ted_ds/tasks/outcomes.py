"""What each example came to, kept beside scores for whoever compares models example by example."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ted_ds.data.loader import Batch
    from ted_ds.models.predictions import Predictions
    from ted_ds.numerics.task_terms import TaskTerms

HASH_LENGTH = 16
"""Hexadecimal digits: two of a million examples have the same in one of 37 million sets."""
ONE = "one"
"""The column of ones, which no file needs to hold."""

Columns = Mapping[str, Sequence[float]]
"""Numbers by name, one for each example."""


class Outcomes(NamedTuple):
    """Of all examples, in the order of the data."""

    columns: Columns
    metrics: Mapping[str, Sequence[str]]
    """By name, how a metric follows: the form (:data:`ted_ds.numerics.metric_sums.FORMS`) and its columns."""
    names: Sequence[str] | None = None
    """What examples are called, where they are no rows of a batch."""


class RowLosses(NamedTuple):
    """Of each row of a batch that has labels: what it is, its task loss and how many labels that is a sum over."""

    hashes: list[str]
    losses: list[float]
    counts: list[int]


def row_losses(predictions: Predictions, terms: TaskTerms, batch: Batch) -> RowLosses:
    """Look at a batch row by row; a row is all sequences of one example."""
    labels = batch.labels
    kept = terms.kept(labels)
    ids = batch.input_ids.reshape(len(labels), -1)
    tokens = batch.kept_tokens.reshape(len(labels), -1)
    counts, sums = kept.reshape(len(labels), -1).sum(-1).tolist(), predictions.task_sums(terms, batch)
    found = RowLosses([], [], [])
    for row, count in enumerate(counts):
        if count:
            of_row = (ids[row][tokens[row]].tolist(), labels[row][kept[row]].tolist())
            found.hashes.append(hashlib.sha256(repr(of_row).encode()).hexdigest()[:HASH_LENGTH])
            found.losses.append(sums[row])
            found.counts.append(count)
    return found


def as_file(outcomes: Outcomes, rows: Sequence[RowLosses]) -> dict[str, Any]:
    """What is written, as JSON: with the loss of each example where examples are rows."""
    hashes, losses, counts = ([one for part in rows for one in part[index]] for index in range(3))
    columns, metrics = dict(outcomes.columns), dict(outcomes.metrics)
    if all(len(column) == len(hashes) for column in columns.values()):
        columns |= {"loss": losses, "count": counts}
        metrics["loss"] = ["ratio", "loss", "count"]
    metrics = {name: form for name, form in metrics.items() if {*form[1:]} <= {*columns, ONE}}
    return {
        "ids": hashes if outcomes.names is None else [*outcomes.names],
        "metrics": {name: [*form] for name, form in metrics.items()},
        "columns": {name: [_number(one) for one in column] for name, column in columns.items()},
    }


def _number(value: Any) -> float | int | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def in_data_order(observations: Sequence[Any], num_ranks: int) -> list[Any]:
    """What batches came to, rank after rank, as the data have them: each round of batches is dealt out to the ranks."""
    of_each = len(observations) // num_ranks
    return [observations[rank * of_each + index] for index in range(of_each) for rank in range(num_ranks)]
