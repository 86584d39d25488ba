"""Whether a model knows anything of the task: its loss on real examples against a guess that knows nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ted_ds.numerics.task_terms import TaskTerms
from ted_ds.vetting.verdict import Verdict

NUM_EXAMPLES = 64
STANDARD_ERRORS = 2.0
"""How far from the guess, in standard errors of the mean, a loss must be to count as better."""


@dataclass(frozen=True)
class Example:
    """One held-out example as a model sees it."""

    loss: float
    """Summed over what counts in it."""
    count: int
    prediction: int | None
    """The most probable class, where the task has classes."""
    label: int | None


def read_examples(logits: Tensor, labels: Tensor, terms: TaskTerms, *, classes: bool) -> list[Example]:
    """The kept examples of a batch; ``classes`` where the task has one label per example, hard or soft."""
    examples = []
    for row in range(len(logits)):
        one_logits, one_labels = logits[row : row + 1], labels[row : row + 1]
        count = int(terms.kept(one_labels).sum())
        if not count:
            continue
        label = None
        if classes:
            label = int(one_labels.argmax()) if one_labels.is_floating_point() else int(one_labels)
        examples.append(
            Example(
                float(terms.loss_sum(one_logits, one_labels)),
                count,
                int(one_logits.argmax()) if classes else None,
                label,
            )
        )
    return examples


def guess_loss(task: str, *, num_outputs: int, targets: Sequence[Sequence[float]] = ()) -> tuple[float, str]:
    """The loss of a guess that has not seen the text, and what it guesses.

    Args:
        task: The kind of task.
        num_outputs: Labels, or ids of the vocabulary.
        targets: For regression, the targets whose mean is guessed.
    """
    if task == "regression":
        return float(np.var(np.asarray(targets), axis=0).mean()), "the mean"
    if task == "multi_label_classification":
        return math.log(2), "one half for each label"
    return math.log(num_outputs), f"one of {num_outputs:,}"


def judge_against_guess(
    model: str, examples: Sequence[Example], guess: tuple[float, str], *, labels: Sequence[str]
) -> Verdict:
    """The verdict on a model that should know the task.

    A classifier whose loss is worse than the guess's and whose accuracy is better than the most frequent label's is
    only too sure of itself: a warning.
    """
    check = f"{model} on {len(examples)} held-out examples"
    guessed, what = guess
    counts = np.array([example.count for example in examples])
    losses = np.array([example.loss for example in examples])
    loss = losses.sum() / counts.sum()
    facts = f"loss {loss:.4g}, guessing {what} {guessed:.4g}"
    if not np.isfinite(loss):
        return Verdict(check, "fail", f"{facts}: not finite")
    if (order := _better_order(examples, labels)) is not None:
        return Verdict(check, "fail", f"{facts}; {order}")
    # of a ratio of sums over examples, each one a draw
    error = np.sqrt(np.square(losses - loss * counts).sum()) / counts.sum() if len(examples) > 1 else 0.0
    if loss + STANDARD_ERRORS * error < guessed:
        accuracy = f", accuracy {_accuracy(examples):.4g}" if examples[0].label is not None else ""
        return Verdict(check, "pass", facts + accuracy)
    if examples[0].label is not None and _beats_most_frequent(examples):
        return Verdict(check, "warn", f"{facts}, but accuracy {_accuracy(examples):.4g}: it is too sure of itself")
    return Verdict(check, "fail", f"{facts} (standard error {error:.2g}): no better; are these its trained weights?")


def _accuracy(examples: Sequence[Example]) -> float:
    return sum(example.prediction == example.label for example in examples) / len(examples)


def _beats_most_frequent(examples: Sequence[Example]) -> bool:
    most_frequent = max(Counter(example.label for example in examples).values()) / len(examples)
    accuracy = _accuracy(examples)
    error = math.sqrt(accuracy * (1 - accuracy) / len(examples))
    return accuracy > most_frequent + STANDARD_ERRORS * error


def _better_order(examples: Sequence[Example], labels: Sequence[str]) -> str | None:
    """Whether the outputs fit the labels much better in another order, in words."""
    if examples[0].label is None or not labels:
        return None
    matches = np.zeros((len(labels), len(labels)))
    for example in examples:
        matches[example.prediction, example.label] += 1
    _, order = linear_sum_assignment(matches, maximize=True)
    accuracy, best = _accuracy(examples), matches[np.arange(len(labels)), order].sum() / len(examples)
    error = math.sqrt(best * (1 - best) / len(examples))
    most_frequent = matches.sum(0).max() / len(examples)
    if best <= most_frequent + STANDARD_ERRORS * error or accuracy + 0.2 > best:
        return None
    names = [labels[index] for index in order]
    return f"accuracy {accuracy:.4g}, with its outputs read as {names} {best:.4g}: its labels are in another order"
