"""Run a model over held-out batches and score it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ted_ds.data.loader import Batch
from ted_ds.evaluation.classification import MultiLabel, SingleLabel, SoftLabel
from ted_ds.evaluation.language_model import LanguageModel
from ted_ds.evaluation.regression import RegressionScores

SCORERS: Mapping[str, Any] = {
    "causal_lm": LanguageModel(),
    "sequence_classification": SingleLabel(),
    "soft_label_classification": SoftLabel(),
    "multi_label_classification": MultiLabel(),
    "regression": RegressionScores(),
}
Gather = Callable[[Any], list[Any]]


@torch.no_grad()
def evaluate(
    forward: Callable[[Batch], tuple[Tensor, ...]],
    batches: Iterable[Batch],
    *,
    task: str,
    gather: Gather,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Score each output that ``forward`` returns (one for a model, one per filter in Stage I).

    An output is a tensor of logits; for causal LM it is the summed cross-entropy.

    Args:
        forward: Runs a batch.
        batches: This rank's batches.
        task: The kind of task.
        gather: Every rank's value, on every rank.
        device: Where ``forward`` runs.
        before_batch: Called before each batch, of which every rank has as many; it may raise to break off.

    Returns:
        The metrics of each output, and tokens per second over all ranks.
    """
    scorer = SCORERS[task]
    observed: list[list[Any]] = []
    num_tokens, started = 0, time.monotonic()
    for batch in batches:
        if before_batch is not None:
            before_batch()
        on_device = batch.to(device)
        outputs = forward(on_device)
        observed.append([scorer.observe(output, on_device.labels) for output in outputs])
        num_tokens += int(batch.kept_tokens.sum())
    tokens_per_s = sum(gather(num_tokens / (time.monotonic() - started)))
    everywhere = [one for rank in gather(observed) for one in rank]
    return [scorer.score(list(of_output)) for of_output in zip(*everywhere, strict=True)], tokens_per_s
