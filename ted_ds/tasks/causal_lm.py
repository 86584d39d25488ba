"""Perplexity per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ted_ds.numerics.losses import kept_labels

Observation = tuple[float, int]
"""Summed cross-entropy, and the number of predicted tokens."""


class LanguageModel:
    """Perplexity; the loss is in nats per token."""

    headline = "perplexity"
    higher_is_better = False

    def observe(self, cross_entropy_sum: Tensor, labels: Tensor) -> Observation:
        """Sum and count of a batch."""
        return float(cross_entropy_sum), int(kept_labels(labels).sum())

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """The loss and its exponential, over everything observed."""
        num_tokens = sum(count for _, count in observations)
        loss = sum(total for total, _ in observations) / num_tokens
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "num_tokens": num_tokens}
