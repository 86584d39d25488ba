"""What a report says of the machine: where the time of a step goes, how fast it computes, how much memory it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ted_ds.config.schema import Recipe
from ted_ds.planning.phase import DISTILL, Phase
from ted_ds.planning.phase_memory import facts_of
from ted_ds.planning.pipeline_cut import operations_per_token
from ted_ds.planning.plan import Plan
from ted_ds.runtime.step_clock import PARTS

SECONDS = "perf/step_s"
"""Of a step, the mean over ranks and over the steps since the last report; ``perf/step_s/PART`` sum up to it."""
TFLOPS, MFU = "perf/tflops_per_rank", "perf/mfu"
PEAK = "perf/peak_{}_gib"


@dataclass(frozen=True)
class OfRank:
    """What a rank has measured since the last report."""

    clock: Mapping[str, float]
    """See :meth:`ted_ds.runtime.step_clock.StepClock.take`."""
    peaks: Mapping[str, float]
    """See :func:`ted_ds.runtime.peak_memory.peak_gib`."""


@dataclass(frozen=True)
class Pace:
    """What is known before of how much a phase has to compute."""

    operations: float | None
    """Of a token of a step, over all ranks (multiply-adds counted twice); None where nobody knows."""
    peak_tflops: float | None
    """What a rank's device computes at best, in 10^12 operations a second, if the recipe says so."""

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, phase: Phase) -> Pace:
        """Of a phase that trains; a teacher that is read from a cache computes nothing, which no plan counts."""
        peak = recipe.tracking.peak_tflops
        if plan.teacher is None or plan.student is None or (phase is DISTILL and recipe.teacher.cache is not None):
            return cls(None, peak)
        facts = {side: facts_of(plan, side) for side in ("student", "teacher")}
        return cls(operations_per_token(recipe, facts, plan.layer_pairs, plan.filter_dim, phase), peak)

    def metrics(self, of_ranks: Sequence[OfRank]) -> dict[str, float]:
        """What ranks have measured, as one; nothing of steps where none was timed."""
        found = {PEAK.format(place): max(one.peaks[place] for one in of_ranks) for place in sorted(of_ranks[0].peaks)}
        timed = [one.clock for one in of_ranks if one.clock["steps"]]
        if not timed:
            return found
        seconds = {part: sum(clock.get(part, 0.0) / clock["steps"] for clock in timed) / len(timed) for part in PARTS}
        step_s = sum(seconds.values())
        found |= {SECONDS: step_s, **{f"{SECONDS}/{part}": value for part, value in seconds.items() if value}}
        if self.operations is not None and step_s:
            tokens = sum(clock["tokens"] / clock["steps"] for clock in timed) / len(timed)
            found[TFLOPS] = self.operations * tokens / step_s / len(of_ranks) / 1e12
            if self.peak_tflops is not None:
                found[MFU] = found[TFLOPS] / self.peak_tflops
        return found
