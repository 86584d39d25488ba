"""Whether learned filters know anything of the task: the held-out loss of each against a guess that knows nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ted_ds.assembly.assembly import Assembly
from ted_ds.tasks.base import LOSS
from ted_ds.tasks.guess import Guess
from ted_ds.vetting.baseline import FEWEST_EXAMPLES, NO_BETTER
from ted_ds.vetting.preflight import heldout_guess
from ted_ds.vetting.verdict import Status, Verdict

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Baseline:
    """What a filter is held against."""

    guess: Guess
    num_examples: int
    """Held out."""
    most_frequent: float | None = None
    """The share of the held-out labels that is the most frequent one's; None where an example has not one label."""


def judge_filters(
    side: str,
    scores: Mapping[str, Metrics],
    baseline: Baseline,
    *,
    are_solved: bool = False,
    before: Mapping[str, Metrics] | None = None,
) -> Verdict:
    """The verdict on the filters of a side.

    A filter fails whose loss is above the guess's by more than ``NO_BETTER`` of that, unless its accuracy shows that it
    is only too sure of itself, or it was scored on fewer than ``FEWEST_EXAMPLES``.

    Args:
        side: Whose they are.
        scores: The held-out metrics of each by the name of its layer.
        baseline: What they are held against.
        are_solved: Whether they began as solved.
        before: What each scored then, where it has learned since.
    """
    guess = baseline.guess
    shown = [
        f"{name} {f'{before[name][LOSS]:.4g} -> ' if before else ''}{metrics[LOSS]:.4g}"
        for name, metrics in scores.items()
    ]
    facts = f"held-out loss {', '.join(shown)}; guessing {guess.what} {guess.loss:.4g}"
    check = f"filters of {side}"
    if guess.loss == 0:
        return Verdict(check, "skip", f"{facts}: the targets do not vary")
    of_filters = {name: _status(metrics, baseline) for name, metrics in scores.items()}
    below = [name for name, status in of_filters.items() if status == "fail"]
    if below:
        longer = "train them for longer"
        remedy = longer if are_solved else f"{longer}, or solve them (filters.initialisation: ridge)"
        return Verdict(check, "fail", f"{facts}: {', '.join(below)} below guessing; {remedy}.")
    doubtful = [name for name, status in of_filters.items() if status == "warn"]
    if doubtful:
        return Verdict(check, "warn", f"{facts}: {', '.join(doubtful)} no better than guessing")
    return Verdict(check, "pass", facts)


def _status(metrics: Metrics, baseline: Baseline) -> Status:
    loss, guess = metrics[LOSS], baseline.guess.loss
    if loss < guess:
        return "pass"
    if not math.isfinite(loss):
        return "fail"
    is_close = loss - guess <= NO_BETTER * abs(guess)
    is_unsure = baseline.num_examples < FEWEST_EXAMPLES
    return "warn" if is_close or is_unsure or _is_too_sure(metrics, baseline) else "fail"


def _is_too_sure(metrics: Metrics, baseline: Baseline) -> bool:
    """Whether it predicts more labels than one would who says the most frequent one, by a standard error."""
    accuracy = metrics.get("accuracy")
    if accuracy is None or baseline.most_frequent is None:
        return False
    return accuracy > baseline.most_frequent + math.sqrt(accuracy * (1 - accuracy) / baseline.num_examples)


def baseline_of(build: Assembly) -> Baseline:
    """What the filters of a run are held against, on its held-out data."""
    heldout, share = build.data.heldout, None
    if build.kind.one_class:
        labels = [build.kind.told(sample) for sample in heldout if sample.label is not None]
        share = max(Counter(map(_most_probable, labels)).values()) / len(labels)
    return Baseline(heldout_guess(build), len(heldout), share)


def _most_probable(label: Any) -> int:
    return int(np.argmax(label)) if isinstance(label, Sequence) else int(label)


def vet_learned(build: Assembly, side: str, result: Mapping[str, Any]) -> Verdict:
    """The verdict on a side's filters, from the result of the phase of Stage I that has them."""
    solved, learned = result.get("solved"), result["filters"][side]
    before = None if solved is None else {name: one["scores"] for name, one in solved[side].items()}
    return judge_filters(
        side,
        learned,
        baseline_of(build),
        are_solved=solved is not None,
        before=None if before == learned else before,
    )
