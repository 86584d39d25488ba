"""What Python code hears of a run as it goes, and how it asks to stop it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ted_ds.errors import OwnCodeError, TedError
from ted_ds.runtime.determinism import undisturbed
from ted_ds.runtime.preemption import StopRequests
from ted_ds.runtime.world import World


@dataclass(frozen=True)
class Stop:
    """What a callback returns to stop the run: as after a signal, all ranks agree, and what was reached is saved."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened; nothing of it can be changed."""

    hook: ClassVar[str]
    """The method that is told."""
    phase: str
    rank: int = 0
    """Of the process that is told: all of them are."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and the screen."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """An optimizer step is behind."""

    hook = "on_step"
    step: int
    """From 1."""
    num_steps: int
    """Of the phase."""
    skipped: str | None
    """Why it was skipped; None where it was taken."""


@dataclass(frozen=True, kw_only=True)
class ReportEvent(Event):
    """Numbers were written down, those of ``metrics.jsonl``."""

    hook = "on_report"
    step: int
    num_steps: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EvaluateEvent(Event):
    """Held-out data was scored."""

    hook = "on_evaluate"
    step: int
    """0 in the phase ``evaluate``."""
    scores: Mapping[str, Mapping[str, float]]
    """Metrics of each model, or of each filter that is learned."""
    headline: str
    """The metric that models are compared by."""
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint is whole and in its place."""

    hook = "on_checkpoint"
    step: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(Event):
    """A phase begins, is over, or was complete before."""

    hook = "on_phase"
    state: Literal["begins", "ends", "skipped"]
    folder: Path
    """Where its result is, or will be."""


class Callback:
    """Hears of what happens, on every rank; a class of yours has the methods that it wants.

    What a method returns is None, or a :class:`Stop`. It sees copies: nothing that it does changes a number of the run,
    and random numbers that it draws are not those of the run.
    """

    def on_phase(self, event: PhaseEvent) -> Stop | None:
        """A phase begins, is over, or was complete before."""

    def on_step(self, event: StepEvent) -> Stop | None:
        """An optimizer step is behind."""

    def on_report(self, event: ReportEvent) -> Stop | None:
        """Numbers were written down."""

    def on_evaluate(self, event: EvaluateEvent) -> Stop | None:
        """Held-out data was scored."""

    def on_checkpoint(self, event: CheckpointEvent) -> Stop | None:
        """A checkpoint is in its place."""


HOOKS = tuple(one.hook for one in (PhaseEvent, StepEvent, ReportEvent, EvaluateEvent, CheckpointEvent))


class Listeners:
    """The callbacks of all ranks."""

    def __init__(self, world: World, stops: StopRequests, callbacks: Sequence[Callback] | None) -> None:
        """Find out who wants to hear what; every rank must call it. None: a run that nobody listens to.

        Raises:
            OwnCodeError: One of them is no :class:`Callback`; on every rank.
        """
        self._world, self._stops, self._callbacks = world, stops, [*(callbacks or ())]
        self._heard: set[str] = set()
        if callbacks is None:
            return
        with world.together():
            for one in self._callbacks:
                if not isinstance(one, Callback):
                    raise OwnCodeError(
                        f"callbacks: {one!r} is no callback; give an object of a class that is made from "
                        "ted_ds.Callback"
                    )
        wanted = [hook for hook in HOOKS for one in self._callbacks if _has(one, hook)]
        self._heard = {hook for of_rank in world.gather(wanted) for hook in of_rank}

    def tell(self, event: Event) -> None:
        """Let all callbacks hear of an event. Every rank must call it.

        Raises:
            OwnCodeError: One of them failed; on every rank.
        """
        if event.hook not in self._heard:
            return
        own = dataclasses.replace(event, rank=self._world.rank)
        with self._world.together(), undisturbed():
            for one in self._callbacks:
                if _has(one, own.hook):
                    self._tell_one(one, own)

    def _tell_one(self, callback: Callback, event: Event) -> None:
        name = type(callback).__name__
        try:
            answer = getattr(callback, event.hook)(event)
        except TedError:
            raise
        except Exception as error:  # whatever it is: the other ranks must hear of it
            raise OwnCodeError(f"callback {name}.{event.hook}: {type(error).__name__}: {error}") from error
        if isinstance(answer, Stop):
            self._stops.ask(f"callback {name}: {answer.reason}")
        elif answer is not None:
            raise OwnCodeError(
                f"callback {name}.{event.hook} returned {answer!r:.100}: use None, or "
                "ted_ds.Stop(reason) to stop the run"
            )


def _has(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(Callback, hook)


def unchangeable(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy that cannot be changed, nor the mappings in it."""
    return MappingProxyType(
        {key: unchangeable(one) if isinstance(one, Mapping) else one for key, one in values.items()}
    )
