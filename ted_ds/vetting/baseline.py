"""Whether a model knows anything of the task: its loss on real examples against a guess that knows nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ted_ds.data.loader import Batch
from ted_ds.models.predictions import DensePredictions, Predictions
from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.tasks.guess import Guess
from ted_ds.vetting.verdict import Verdict

NUM_EXAMPLES = (64, 512)
"""How many are looked at: a few, and more where these leave a doubt."""
FEWEST_EXAMPLES = 32
"""With fewer, nobody is condemned."""
FEWEST_PER_LABEL = 5
"""Of each label that another order would move; with fewer, an order can be made to fit anything."""
STANDARD_ERRORS = 2.0
"""How far from the guess, in standard errors of the mean, a loss must be to count as better."""
NO_BETTER = 0.01
"""A loss within this share of the guess's is no better than the guess."""


@dataclass(frozen=True)
class Example:
    """One held-out example as a model sees it."""

    loss: float
    """Summed over what counts in it."""
    count: int
    prediction: int | None
    """The most probable class, where the task has classes."""
    label: int | None


def read_examples(predictions: Predictions, batch: Batch, terms: TaskTerms, *, classes: bool) -> list[Example]:
    """The kept examples of a batch; ``classes`` where the task has one label per example, hard or soft."""
    examples = []
    for row, loss in enumerate(predictions.task_sums(terms, batch)):
        one_labels = batch.labels[row : row + 1]
        count = int(terms.kept(one_labels).sum())
        if not count:
            continue
        prediction = label = None
        if classes and isinstance(predictions, DensePredictions):
            prediction = int(predictions.logits[row].argmax())
            label = int(one_labels.argmax()) if one_labels.is_floating_point() else int(one_labels)
        examples.append(Example(loss, count, prediction, label))
    return examples


def judge_against_guess(model: str, examples: Sequence[Example], guess: Guess, *, labels: Sequence[str]) -> Verdict:
    """The verdict on a model that should know the task.

    A failure needs ``FEWEST_EXAMPLES``, a loss no better than the guess's and, where there are classes, an accuracy no
    better than the most frequent label's: a sound classifier may be too sure of itself, or its task hard.
    """
    check = f"{model} on {len(examples)} held-out examples"
    counts = np.array([example.count for example in examples])
    losses = np.array([example.loss for example in examples])
    loss = losses.sum() / counts.sum()
    facts = f"loss {loss:.4g}, guessing {guess.what} {guess.loss:.4g}"
    if examples[0].label is not None:
        facts += f", accuracy {_accuracy(examples):.4g}"
    if not np.isfinite(loss):
        return Verdict(check, "fail", f"{facts}: not finite")
    if guess.loss == 0:
        return Verdict(check, "skip", f"{facts}: the targets do not vary")
    if (order := _better_order(examples, labels)) is not None:
        return Verdict(check, "fail", f"{facts}; {order}")
    # of a ratio of sums over examples, each one a draw
    error = np.sqrt(np.square(losses - loss * counts).sum()) / counts.sum() if len(examples) > 1 else np.inf
    if loss + STANDARD_ERRORS * error < guess.loss:
        if guess.prior_loss is not None and loss >= guess.prior_loss:
            return Verdict(check, "warn", f"{facts}: no better than saying how frequent each label is")
        return Verdict(check, "pass", facts)
    if loss < (1 - NO_BETTER) * guess.loss or _beats_most_frequent(examples):
        return Verdict(check, "warn", f"{facts}: better by too little to be sure, or too sure of itself")
    if len(examples) < FEWEST_EXAMPLES:
        return Verdict(check, "warn", f"{facts}: no better, though these are too few to tell")
    return Verdict(check, "fail", f"{facts}: no better; are these its trained weights?")


def _accuracy(examples: Sequence[Example]) -> float:
    return sum(example.prediction == example.label for example in examples) / len(examples)


def _beats_most_frequent(examples: Sequence[Example]) -> bool:
    if examples[0].label is None:
        return False
    most_frequent = max(Counter(example.label for example in examples).values()) / len(examples)
    accuracy = _accuracy(examples)
    return accuracy > most_frequent + math.sqrt(accuracy * (1 - accuracy) / len(examples))


def _better_order(examples: Sequence[Example], labels: Sequence[str]) -> str | None:
    """Whether the outputs fit the labels much better in another order, in words."""
    if examples[0].label is None or not labels:
        return None
    matches = np.zeros((len(labels), len(labels)))
    for example in examples:
        matches[example.prediction, example.label] += 1
    _, order = linear_sum_assignment(matches, maximize=True)
    moved = order != np.arange(len(labels))
    if not moved.any() or matches.sum(0)[order[moved]].min() < FEWEST_PER_LABEL:
        return None
    accuracy, best = _accuracy(examples), matches[np.arange(len(labels)), order].sum() / len(examples)
    error = math.sqrt(best * (1 - best) / len(examples))
    most_frequent = matches.sum(0).max() / len(examples)
    if best <= most_frequent + STANDARD_ERRORS * error or accuracy + 0.2 > best:
        return None
    names = [labels[index] for index in order]
    return f"accuracy {accuracy:.4g}, with its outputs read as {names} {best:.4g}: its labels are in another order"
