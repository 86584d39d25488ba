"""Predictions that have not seen the text: what a model must beat to know anything of its task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Guess:
    """Predictions that have not seen the text."""

    loss: float
    what: str
    """What is guessed."""
    prior_loss: float | None = None
    """The loss of guessing how frequent each label is; None where that is the same or makes no sense."""


def one_of(count: int, rates: np.ndarray | None = None) -> Guess:
    """Every class as probable as the others; ``rates`` are how frequent each is, where that is known."""
    prior = None if rates is None else float(entropy_terms(rates).sum())
    return Guess(math.log(count), f"one of {count:,}", prior)


def entropy_terms(rates: np.ndarray) -> np.ndarray:
    """``-p log p`` of each rate, in nats."""
    return -rates * np.log(np.where(rates > 0, rates, 1.0))
