"""What a run came to, in words: first what was reached, then what the numbers do not say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ted_ds.errors import counted
from ted_ds.output.results import BEGUN, STUDENT, TEACHER
from ted_ds.reports.reading import RunRecord

SHARES = ("accuracy", "exact_match", "masked_accuracy", "token_accuracy")
"""Metrics that are shares of examples, so that their standard error is known."""


@dataclass(frozen=True)
class Verdict:
    """Sentences for the top of a report."""

    reached: list[str]
    warnings: list[str]


def verdict_of(run: RunRecord) -> Verdict:
    """Of one run."""
    return Verdict([*_reached(run)], [*_warnings(run)])


def shown(value: float) -> str:
    """A number with the digits a person reads."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def millions(count: float) -> str:
    """A number of parameters."""
    return f"{count / 1e6:,.1f} M"


def gap_closed(run: RunRecord) -> float | None:
    """Share of the way from the student as it began to its teacher that is behind it.

    Of losses where the headline is their exponential (a perplexity), else of the headline; None where the student
    began at or above its teacher.
    """
    key = "loss" if run.headline is not None and not run.headline.higher_is_better else None
    values = []
    for model in (TEACHER, BEGUN, STUDENT):
        value = run.models.get(model, {}).get(key) if key else run.score(model)
        if value is None:
            return None
        values.append(value if key is None else -value)
    teacher, begun, after = values
    return (after - begun) / (teacher - begun) if teacher > begun else None


def standard_error(run: RunRecord, model: str) -> float | None:
    """Of a headline that is a share of independent examples: ``sqrt(p (1 - p) / n)``."""
    score, count = run.score(model), run.models.get(model, {}).get("num_examples")
    if run.headline is None or run.headline.name not in SHARES or score is None or not count:
        return None
    return math.sqrt(score * (1 - score) / count)


def _reached(run: RunRecord) -> Iterator[str]:
    if run.headline is None or STUDENT not in run.models:
        done = ", ".join(phase.name for phase in run.phases) or "none"
        yield f"The run is not complete: no model was scored yet. Complete phases: {done}."
        return
    name = run.headline.name.replace("_", " ")
    after, teacher, begun = run.score(STUDENT), run.score(TEACHER), run.score(BEGUN)
    if after is None:
        return
    size = run.models[STUDENT].get("num_parameters")
    whole = run.models.get(TEACHER, {}).get("num_parameters")
    share_of_size = f", {size / whole:.0%} of its teacher's" if size and whole else ""
    what = f"The student ({millions(size)} parameters{share_of_size})" if size else "The student"
    sentence = f"{what} reaches {shown(after)} in {name} on held-out data"
    sentence += f"; its teacher has {shown(teacher)}" if teacher is not None else ""
    yield sentence + (f", and it began at {shown(begun)}." if begun is not None else ".")
    share = gap_closed(run)
    if share is not None:
        of_what = "" if run.headline.higher_is_better else " in loss"
        yield f"That is {share:.0%} of the way to its teacher{of_what}."
    own, of_teacher = (run.models.get(one, {}).get("perf/tokens_per_s") for one in (STUDENT, TEACHER))
    if own and of_teacher:
        yield f"A forward pass reads {shown(own)} tokens/s, {own / of_teacher:.2f} times as many as the teacher's."


def _warnings(run: RunRecord) -> Iterator[str]:
    error = standard_error(run, STUDENT)
    if error is not None and run.headline is not None:
        yield f"The standard error of one {run.headline.name} is {error:.3f} here: smaller differences are chance."
    if STUDENT in run.models:
        yield (
            "This is one run of one seed: it does not tell whether another method would have done better. "
            "ted-ds study compares methods."
        )
    after, begun, teacher = run.score(STUDENT), run.score(BEGUN), run.score(TEACHER)
    sign = 1 if run.headline is not None and run.headline.higher_is_better else -1
    if after is not None and begun is not None and sign * (after - begun) <= 0:
        yield "The student is no better than it began."
    if after is not None and teacher is not None and sign * (after - teacher) > 0:
        yield "The student is ahead of its teacher: the teacher may not have learned this task to its end."
    for phase in run.reported_phases:
        skipped = max((one.get("train/skipped_steps", 0) for one in run.of_phase(phase)), default=0)
        if skipped:
            yield f"{phase}: skipped {counted(round(skipped), 'step')}, as a loss or gradient was not finite."
