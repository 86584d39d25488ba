"""How often each training phase goes over its data, and the hours it takes by arithmetic, for ``ted-ds check``."""

from __future__ import annotations

from dataclasses import dataclass

from ted_ds.config.phase_plan import PhasePlan
from ted_ds.config.schema import Recipe
from ted_ds.config.weights import weight_at
from ted_ds.data.transfer import share_of
from ted_ds.planning.heal_cost import heal_cost
from ted_ds.planning.operations import known_training, operations_of_training
from ted_ds.planning.phase import DISTILL, HEAL_STUDENT, Phase, phases_of, training_of
from ted_ds.planning.plain_numbers import in_bytes, plainly
from ted_ds.planning.plan import Plan
from ted_ds.planning.stage_memory import bubble, num_microbatches

BYTES_PER_TOKEN = 4
"""Of text: about what English comes to with vocabularies of 30,000 to 150,000 tokens (OpenWebText: 39.8 GB are 9.0
billion tokens of GPT-2)."""


MOST_PASSES = 50
"""Over the same texts, by a rule of thumb: with more, models learn these by heart and nothing else."""


@dataclass(frozen=True)
class Pace:
    """What is assumed of the ranks."""

    num_ranks: int
    tflops: float
    """What each computes, in 10^12 operations a second."""

    @property
    def in_words(self) -> str:
        """As a condition."""
        who = "the one rank" if self.num_ranks == 1 else f"each of {self.num_ranks} ranks"
        return f"if {who} computes {self.tflops:g} TFLOP/s (--tflops)"


def describe_work(recipe: Recipe, plan: Plan, pace: Pace) -> str:
    """A line for each phase that trains, or heals."""
    lines = []
    for phase in phases_of(recipe):
        if phase is HEAL_STUDENT:
            lines.append(f"work      {phase.name:16} {_healing(recipe, plan, pace)}\n")
        if phase.plan_path is not None:
            passes, most = _passes(recipe, plan, training_of(recipe, phase))
            lines.append(f"work      {phase.name:16} {passes}; {_hours(recipe, plan, phase, pace)}\n")
            if most > MOST_PASSES:
                lines.append(
                    f"WARN      {phase.name}: {plainly(most, digits=2)} passes over the same texts, which models learn "
                    f"by heart (above {MOST_PASSES}); give more data, or train for less\n"
                )
    return "".join(lines)


def _passes(recipe: Recipe, plan: Plan, training: PhasePlan) -> tuple[str, float]:
    """How often the data are gone through, in words, and the most that some of them are; 0 where that is not known."""
    if recipe.task.packed:
        return _passes_over_corpora(recipe, plan, training)
    if training.epochs is not None:
        return _times(training.epochs, "the rows" if plan.num_rows is None else str(plan.num_rows)), training.epochs
    if plan.num_rows is None:
        return "passes over the rows are known once these are counted", 0.0
    learned = training.steps * training.global_batch_size
    if recipe.data.transfer is not None and training.takes_transfer:
        if isinstance(recipe.data.transfer_share, str):
            return "passes over the rows are known once those of data.transfer are counted", 0.0
        learned *= float(1 - share_of(recipe.data.transfer_share))
    number = learned / max(plan.num_rows.number, 1)
    return _times(number, str(plan.num_rows)), number


def _passes_over_corpora(recipe: Recipe, plan: Plan, training: PhasePlan) -> tuple[str, float]:
    """Each source's by its share of the tokens at the first step, and by its bytes; and the most of them."""
    tokens = training.steps * training.global_batch_size * recipe.task.sequence_length
    powers = [weight_at(one.weight, 0) ** (1 / recipe.data.mixture_temperature) for one in recipe.data.train]
    kept = 1 - recipe.data.heldout_fraction if recipe.data.heldout_sources is None else 1.0
    found, by_size, most = [], any(one.weight == "size" for one in recipe.data.train), 0.0
    for index, source in enumerate(recipe.data.train):
        size = plan.corpus_bytes.get(index)
        where = source.path if source.name is None else f"{source.path} {source.name}"
        if size is None or (by_size and len(powers) > 1):
            found.append(f"passes over {where} are not known before it is read")
        else:
            number = tokens * powers[index] / sum(powers) * BYTES_PER_TOKEN / max(size * kept, 1)
            most = max(most, number if source.epochs is None else min(number, source.epochs))
            found.append(f"about {_times(number, f'{where} ({in_bytes(size)})')}")
    of_token = f", if {BYTES_PER_TOKEN} bytes are a token" if plan.corpus_bytes else ""
    return f"{', '.join(found)}{of_token}", most


def _times(number: float, what: str) -> str:
    return f"{plainly(number)} pass{'' if number == 1 else 'es'} over {what}"


def _hours(recipe: Recipe, plan: Plan, phase: Phase, pace: Pace) -> str:
    """How long training takes, in words."""
    if known_training(recipe, plan, training_of(recipe, phase)).max_steps is None:
        return "hours are known once the rows are counted"
    operations = operations_of_training(recipe, plan, phase)
    if operations is None:
        return "hours are known once both models are"
    seconds = operations / pace.num_ranks / (pace.tflops * 1e12) * _waiting(recipe, plan, phase, pace)
    hours, pace_in_words = _in_hours(seconds), pace.in_words
    most = "at most " if seconds >= 360 and not recipe.task.packed and not _is_fewest(plan) else ""
    cached = phase is DISTILL and recipe.teacher.cache is not None
    too_much = ", the cached teacher counted as if it ran in every step" if cached else ""
    return f"{most}{hours} of training {pace_in_words}{too_much}"


def _in_hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 360 else "less than 0.1 h"


def _healing(recipe: Recipe, plan: Plan, pace: Pace) -> str:
    """What healing the student takes, in words."""
    if plan.teacher is None or plan.student is None:
        return "hours are known once both models are"
    cost = heal_cost(recipe, plan.teacher, plan.student, num_ranks=pace.num_ranks)
    seconds = (cost.in_passes / pace.num_ranks + cost.in_solving) / (pace.tflops * 1e12)
    return (
        f"{cost.tokens:,} calibration tokens through the teacher once and the student twice, and "
        f"{plan.student.num_blocks} maps of {cost.unknowns:,} unknowns solved in fp64; {_in_hours(seconds)} "
        f"{pace.in_words}"
    )


def _is_fewest(plan: Plan) -> bool:
    return plan.num_rows is not None and plan.num_rows.limit == "least"


def _waiting(recipe: Recipe, plan: Plan, phase: Phase, pace: Pace) -> float:
    """By how much a pipeline takes longer than its mean stage works."""
    stages = plan.stages.get(phase.name, ())
    if len(stages) < 2:
        return 1.0
    count = num_microbatches(training_of(recipe, phase), max(pace.num_ranks // len(stages), 1))
    slowest = max(stage.cost for stage in stages) * len(stages) / sum(stage.cost for stage in stages)
    return slowest / (1 - bubble(len(stages), count))
