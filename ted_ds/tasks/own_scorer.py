"""A scorer that a user writes: a metric beside those of a kind of task, by which models are then compared."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ted_ds.errors import OwnCodeError, TedError
from ted_ds.tasks.base import KindScorer
from ted_ds.tasks.outcomes import Outcomes

if TYPE_CHECKING:
    from torch import Tensor

    from ted_ds.data.loader import Batch
    from ted_ds.tasks.kind import AnyKind

NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class OwnScorer:
    """A metric of your own, beside those of the task; by it models are compared, and the best one is chosen."""

    name: str
    """Of the metric."""
    observe: Callable[[Tensor, Batch], Any]
    """What is kept of a batch: of what the model puts out for it (logits; of a language model, sums over tokens), and
    of the batch with its ``labels``. What is kept is sent to all ranks: put it on the CPU, and keep it small."""
    score: Callable[[Sequence[Any]], float]
    """The metric, from all that was kept, whatever its order: of how many ranks it comes decides that."""
    higher_is_better: bool = True
    version: int = 1
    """To be raised when the functions are changed: what was scored by another is not taken for this."""

    def mistakes(self) -> list[str]:
        """What is wrong with it by itself."""
        found = []
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            found.append(f"scorer: name {self.name!r}: use small letters, digits and _, beginning with a letter")
        for key in ("observe", "score"):
            if not callable(getattr(self, key)):
                found.append(f"scorer: {self.name}: {key} {getattr(self, key)!r}: use a function")
        return found

    def identity(self) -> dict[str, Any]:
        """By this a phase knows that it is scored by something else."""
        return {"name": self.name, "higher_is_better": self.higher_is_better, "version": self.version}


def own_scorer_mistakes(scorer: OwnScorer | None) -> list[str]:
    """What is wrong with what is given."""
    if scorer is None:
        return []
    return scorer.mistakes() if isinstance(scorer, OwnScorer) else [f"scorer: {scorer!r}: use a ted_ds.OwnScorer"]


class BothScorers:
    """A kind's scorer, and a user's."""

    def __init__(self, of_kind: KindScorer, own: OwnScorer) -> None:
        self._of_kind, self._own = of_kind, own
        self.headline, self.higher_is_better = own.name, own.higher_is_better

    def observe(self, outputs: Tensor, batch: Batch) -> tuple[Any, Any]:
        """As each does."""
        return self._of_kind.observe(outputs, batch), self._ask("observe", outputs, batch)

    def score(self, observations: Sequence[tuple[Any, Any]]) -> dict[str, float]:
        """The metrics of both.

        Raises:
            OwnCodeError: The user's failed, gave no number, or has the name of another metric.
        """
        metrics = self._of_kind.score([one for one, _ in observations])
        name = self._own.name
        if name in metrics:
            raise OwnCodeError(f"scorer {name}: this task has a metric of that name; use another")
        value = self._ask("score", [one for _, one in observations])
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise OwnCodeError(f"scorer {name}: its score gave {value!r:.100}: use a finite number")
        return {**metrics, name: number}

    def outcomes(self, observations: Sequence[tuple[Any, Any]]) -> Outcomes:
        """Those of the kind's."""
        return self._of_kind.outcomes([one for one, _ in observations])

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._own, name)(*arguments)
        except TedError:
            raise
        except Exception as error:  # whatever it is: it is not ours
            raise OwnCodeError(f"scorer {self._own.name}.{name}: {type(error).__name__}: {error}") from error


class ScoredKind:
    """A kind of task with a user's scorer; all else is the kind's."""

    def __init__(self, kind: AnyKind, own: OwnScorer) -> None:
        self._kind = kind
        self.scorer = BothScorers(kind.scorer, own)
        self.headline, self.higher_is_better = own.name, own.higher_is_better

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)

    def files_of(self, observations: Sequence[tuple[Any, Any]]) -> Mapping[str, Any]:
        """See :class:`ted_ds.tasks.base.TaskKind`."""
        return self._kind.files_of([one for one, _ in observations])


def scored_by(kind: AnyKind, own: OwnScorer | None) -> AnyKind:
    """A kind of task whose models a user's scorer compares; None: as it does itself."""
    return kind if own is None else cast("AnyKind", ScoredKind(kind, own))
