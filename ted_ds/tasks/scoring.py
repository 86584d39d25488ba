"""Run a model over held-out batches and score it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import Predictions
from ted_ds.tasks.base import Scorer, TaskKind
from ted_ds.tasks.outcomes import Columns, RowLosses, as_file, in_data_order, row_losses

Gather = Callable[[Any], list[Any]]


class Recorder:
    """A kind's scorer that also keeps what is written of the predictions themselves."""

    def __init__(self, kind: TaskKind[Any], *, num_ranks: int, with_outcomes: bool = False) -> None:
        """Score as a kind of task does.

        Args:
            kind: The kind.
            num_ranks: How many ranks share the batches.
            with_outcomes: Whether what each example came to is kept; then :meth:`look` is called for each batch before
                :meth:`observe`.
        """
        self._kind, self._scorer = kind, kind.scorer
        self._num_ranks, self._with_outcomes = num_ranks, with_outcomes
        self._rows: RowLosses | None = None
        self.headline, self.higher_is_better = self._scorer.headline, self._scorer.higher_is_better
        self.files: Mapping[str, Any] = {}
        """Of the output that was scored last (:meth:`TaskKind.files_of`)."""
        self.columns: Columns | None = None
        """What each example with one label came to, in the order of the data; None with other labels."""
        self.outcomes: Mapping[str, Any] | None = None
        """Of each example of it, for a file; None where they are not kept."""

    def look(self, predictions: Predictions, batch: Batch) -> None:
        """See the predictions that :meth:`observe` is then given the outputs of."""
        if self._with_outcomes:
            self._rows = row_losses(predictions, self._kind.terms, batch)

    def observe(self, outputs: Tensor, batch: Batch) -> tuple[Any, RowLosses | None]:
        """As the scorer does, and row by row."""
        return self._scorer.observe(outputs, batch), self._rows

    def score(self, observations: Sequence[tuple[Any, RowLosses | None]]) -> dict[str, float]:
        """As the scorer does."""
        observed = [one for one, _ in observations]
        self.files = self._kind.files_of(observed)
        in_order = in_data_order(observations, self._num_ranks)
        if self._kind.one_class:
            self.columns = self._scorer.outcomes([one for one, _ in in_order]).columns
        if self._with_outcomes:
            rows = [of_batch for _, of_batch in in_order if of_batch is not None]
            compared_by = {"headline": self._kind.headline, "higher_is_better": self._kind.higher_is_better}
            self.outcomes = compared_by | as_file(self._scorer.outcomes([one for one, _ in in_order]), rows)
        return self._scorer.score(observed)


@torch.no_grad()
def evaluate(
    forward: Callable[[Batch], Mapping[int, Tensor]],
    batches: Iterable[Batch],
    *,
    scorer: Scorer,
    gather: Gather,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
    counts_tokens: bool = True,
) -> tuple[list[dict[str, float]], float]:
    """Score each output that ``forward`` returns by its number (one for a model, one per filter in Stage I).

    An output is a tensor of logits; of a language model it is what is scored of them, summed up.

    Args:
        forward: Runs a batch; may give only some of the outputs, where other ranks give the others of that batch.
        batches: This rank's batches.
        scorer: The task's.
        gather: Every rank's value, on every rank.
        device: Where ``forward`` runs.
        before_batch: Called before each batch, of which every rank has as many; it may raise to break off.
        counts_tokens: Whether no other rank runs the same batches, or this is the one of them that counts.

    Returns:
        The metrics of each output, and tokens per second over all ranks.
    """
    observed: dict[int, list[Any]] = {}
    num_tokens, started = 0, time.monotonic()
    for batch in batches:
        if before_batch is not None:
            before_batch()
        on_device = batch.to(device)
        for number, output in forward(on_device).items():
            observed.setdefault(number, []).append(scorer.observe(output, on_device))
        num_tokens += int(batch.kept_tokens.sum()) if counts_tokens else 0
    tokens_per_s = sum(gather(num_tokens / (time.monotonic() - started)))
    everywhere: dict[int, list[Any]] = {}
    for of_rank in gather(observed):
        for number, of_output in of_rank.items():
            everywhere.setdefault(number, []).extend(of_output)
    return [scorer.score(everywhere[number]) for number in sorted(everywhere)], tokens_per_s
