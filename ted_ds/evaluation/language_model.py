"""Perplexity per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ted_ds.numerics.losses import cross_entropy_sum, kept_labels

Observation = tuple[float, int]


def observe(logits: Tensor, labels: Tensor) -> Observation:
    """Summed cross-entropy and number of predicted tokens of a batch."""
    return float(cross_entropy_sum(logits, labels)), int(kept_labels(labels).sum())


def score(observations: Sequence[Observation]) -> dict[str, float]:
    """Loss in nats per token and its exponential, over everything observed."""
    num_tokens = sum(count for _, count in observations)
    loss = sum(total for total, _ in observations) / num_tokens
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "num_tokens": num_tokens}
