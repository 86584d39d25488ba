"""How a first recipe trains: batches by memory, steps by passes over the data and by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ted_ds.config.defaults import GLOBAL_BATCH_SIZE
from ted_ds.config.schema import Recipe
from ted_ds.data.first_rows import CHARACTERS_PER_TOKEN
from ted_ds.planning.deepspeed_choice import candidates
from ted_ds.planning.family_uses import refused_uses
from ted_ds.planning.hosting import USABLE
from ted_ds.planning.memory import gib
from ted_ds.planning.operations import operations_of
from ted_ds.planning.phase import phases_of
from ted_ds.planning.plan import Plan
from ted_ds.verbs.init.forms import Form
from ted_ds.verbs.init.looking import Looked
from ted_ds.verbs.init.means import Means

PASSES = 3
"""Over the data: of small ones, one teaches little."""
MOST_STEPS, FEWEST_STEPS = 20_000, 20
"""On a corpus."""
SEQUENCES_ON_CPU = 8
"""Of a corpus, in each step: more steps in the same time."""
MINUTES_ON_CPU = 30.0
"""Of training, all phases together, where nothing else is said: a first run is to come to its end."""


@dataclass(frozen=True)
class Course:
    """What is chosen."""

    batch: int
    """In all."""
    why_batch: str
    """Empty where it is the usual one."""
    micro: int
    why_micro: str
    recomputes: bool
    """Whether activations are computed again, as they do not fit."""
    passes: float
    steps: int | None
    """Of Stage II; None of rows, which are counted in passes."""
    why_passes: str = ""
    """Empty where there are as many as are usual."""


def begin_course(means: Means, looked: Looked, form: Form, length: int) -> Course:
    """With the smallest microbatches, and all passes.

    Args:
        means: What there is to train with.
        looked: The data.
        form: The task they are of.
        length: Of a sequence, in tokens.
    """
    usual, why = GLOBAL_BATCH_SIZE, ""
    if form.is_corpus and means.is_cpu:
        usual, why = SEQUENCES_ON_CPU, "without a GPU: more steps in the same time"
    batch = -(-usual // means.num_ranks) * means.num_ranks
    if batch != usual:
        why = f"that {means.num_ranks} ranks can share"
    steps, passes = None, float(PASSES)
    if form.is_corpus:
        of_pass = looked.num_bytes / CHARACTERS_PER_TOKEN / (batch * length)
        steps = int(min(max(PASSES * of_pass, FEWEST_STEPS), MOST_STEPS))
        passes = steps / max(of_pass, 1e-9)
    return Course(batch, why, 1, "", recomputes=False, passes=passes, steps=steps)


def fit_course(course: Course, recipe: Recipe, plan: Plan, means: Means, minutes: float | None) -> Course:
    """The same with the largest microbatches that fit, and no more steps than there is time for.

    Args:
        course: As it began.
        recipe: That was written by it.
        plan: Its plan.
        means: What there is to train with.
        minutes: Of training; None: as many as are usual.
    """
    if minutes is None and means.is_cpu:
        minutes = MINUTES_ON_CPU
    course = _in_memory(course, recipe, plan, means)
    return course if minutes is None else _in_time(course, recipe, plan, means, minutes)


def _in_memory(course: Course, recipe: Recipe, plan: Plan, means: Means) -> Course:
    usable, least, recomputes = USABLE * means.free, 0, False
    for recomputes in _ways(recipe, plan):
        for micro in _divisors(course.batch // means.num_ranks):
            least = _needed(recipe, plan, means, micro, recomputes=recomputes)
            if least <= usable:
                why = f"takes about {gib(least)} of {means.memory_in_words}"
                return replace(course, micro=micro, why_micro=why, recomputes=recomputes)
    why = f"takes about {gib(least)}, and does not fit into {means.memory_in_words}: give it more ranks, or a GPU"
    return replace(course, micro=1, why_micro=why, recomputes=recomputes)


def _ways(recipe: Recipe, plan: Plan) -> Iterator[bool]:
    """Whether activations are computed again, where these models allow it."""
    yield False
    again = recipe.model_copy(update={"activation_checkpointing": True})
    if not [*refused_uses(again, plan.teacher, plan.student)]:
        yield True


def _divisors(number: int) -> Iterator[int]:
    """Of a number, from the largest."""
    return (one for one in range(number, 0, -1) if number % one == 0)


def _needed(recipe: Recipe, plan: Plan, means: Means, micro: int, *, recomputes: bool) -> int:
    """Bytes of a rank's device by the DeepSpeed file that takes least, in the phase that needs most."""
    tried = recipe.with_plans(lambda one: one.model_copy(update={"micro_batch_size": micro}))
    tried = tried.model_copy(update={"activation_checkpointing": recomputes})
    found = candidates(tried, plan, num_ranks=means.num_ranks, device_is_host=means.is_cpu)
    return min(one.needed for one in found)


def _in_time(course: Course, recipe: Recipe, plan: Plan, means: Means, minutes: float) -> Course:
    operations = [operations_of(recipe, plan, one) for one in phases_of(recipe) if one.plan_path is not None]
    needed = sum(one or 0.0 for one in operations) / (means.num_ranks * means.tflops * 1e12)
    share = minutes * 60 / max(needed, 1.0)
    if share >= 1 or course.steps == FEWEST_STEPS:
        return course
    where = "on this CPU" if means.is_cpu else f"at {means.tflops:g} TFLOP/s a GPU"
    why = f", as many as fit into {minutes:g} minutes {where}"
    if course.steps is None:
        return replace(course, passes=float(f"{share * course.passes:.2g}"), why_passes=why)
    steps = int(share * course.steps)
    if steps < FEWEST_STEPS:
        why, steps = f", as fewer than {FEWEST_STEPS} steps teach nothing", FEWEST_STEPS
    return replace(course, passes=course.passes * steps / course.steps, steps=steps, why_passes=why)
