"""Settings are tried, arm by arm alike, and the best on held-out data is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.finite_number import is_finite_number
from ted_ds.output.results import RESULTS_FILE, STUDENT, outcomes_file
from ted_ds.planning.phase import EVALUATE
from ted_ds.planning.study_plan import StudyPlan
from ted_ds.planning.study_search import Trial, numbers_of_rounds
from ted_ds.verbs.study.runs import Runs, StudyRun


@dataclass(frozen=True)
class Tried:
    """A trial in one round."""

    number: int
    setting: Mapping[str, Any]
    halved: int
    """How often its steps were halved."""
    score: float | None
    """On held-out data; None where it failed."""


def at_an_edge(tried: Sequence[Tried], taken: Mapping[str, object]) -> Iterator[str]:
    """What of the setting that is taken is the lowest or the highest of three values or more, in words.

    The best one may then lie beyond what was tried.
    """
    for key, value in taken.items():
        values = sorted({one.setting[key] for one in tried if is_finite_number(one.setting.get(key))})
        if len(values) >= 3 and value in (values[0], values[-1]):
            which = "lowest" if value == values[0] else "highest"
            yield f"{key}={value:g} is the {which} of {len(values)} that were tried, and the best may lie beyond"


class SearchRounds:
    """The rounds of all arms together: which trials are next, and what they came to."""

    def __init__(self, plan: StudyPlan, runs: Runs) -> None:
        """Begin with all trials."""
        assert plan.study.search is not None
        self._runs = runs
        self._numbers = numbers_of_rounds(plan.study.search)
        self._left: dict[str, list[Trial]] = {name: [*trials] for name, trials in plan.trials.items()}
        self.tried: dict[str, list[Tried]] = {name: [] for name in plan.trials}
        """By arm, round after round."""

    def __iter__(self) -> SearchRounds:
        """Round after round: each is to be run before the next is asked for."""
        return self

    def __next__(self) -> list[StudyRun]:
        """The runs of the next round."""
        if not self._numbers:
            raise StopIteration
        self._number = self._numbers.pop(0)
        for arm, trials in self._left.items():
            self._left[arm] = trials[: self._number]
        halved = len(self._numbers)
        return [self._runs.of_trial(trial, halved) for trials in self._left.values() for trial in trials]

    def judge(self) -> None:
        """Read what the trials of a round came to, and bring the best of each arm to the front."""
        halved = len(self._numbers)
        for arm, trials in self._left.items():
            scores = {trial.number: self._score(self._runs.of_trial(trial, halved)) for trial in trials}
            self.tried[arm] += [Tried(one.number, dict(one.setting), halved, scores[one.number][0]) for one in trials]
            self._left[arm] = sorted(trials, key=lambda trial: (scores[trial.number][1], trial.number))

    @property
    def chosen(self) -> dict[str, Trial]:
        """The best of each arm of which any trial is complete; of equal ones, the first."""
        found = {}
        for arm, trials in self._left.items():
            last = [one for one in self.tried[arm] if one.halved == 0 and one.score is not None]
            if last:
                found[arm] = trials[0]
        return found

    @staticmethod
    def _score(run: StudyRun) -> tuple[float | None, float]:
        """A trial's score, and the same as the lower the better; where it failed, none and the worst."""
        if not run.is_complete():
            return None, math.inf
        of_phase = run.folder / EVALUATE.name
        about = json.loads((of_phase / outcomes_file(STUDENT)).read_text(encoding="utf-8"))
        score = json.loads((of_phase / RESULTS_FILE).read_text(encoding="utf-8"))[STUDENT][about["headline"]]
        if not math.isfinite(score):
            return None, math.inf
        return score, -score if about["higher_is_better"] else score
