"""Large-scale distillation of language models on DeepSpeed: task-aware layer-wise distillation (TED) and baselines.

    from ted_ds import distill

    result = distill("recipe.yaml", overrides={"distill.max_steps": 100})

What can be imported from here is loaded when it is first asked for: ``import ted_ds`` itself takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ted_ds.config.schema import Recipe as Recipe
    from ted_ds.errors import OwnCodeError as OwnCodeError
    from ted_ds.errors import StoppedOnRequest as StoppedOnRequest
    from ted_ds.errors import TedError as TedError
    from ted_ds.objectives.own_term import OwnTerm as OwnTerm
    from ted_ds.objectives.own_term import Taps as Taps
    from ted_ds.phases.callbacks import Callback as Callback
    from ted_ds.phases.callbacks import CheckpointEvent as CheckpointEvent
    from ted_ds.phases.callbacks import EvaluateEvent as EvaluateEvent
    from ted_ds.phases.callbacks import PhaseEvent as PhaseEvent
    from ted_ds.phases.callbacks import ReportEvent as ReportEvent
    from ted_ds.phases.callbacks import StepEvent as StepEvent
    from ted_ds.phases.callbacks import Stop as Stop
    from ted_ds.tasks.own_scorer import OwnScorer as OwnScorer
    from ted_ds.verbs.distill import distill as distill
    from ted_ds.verbs.result import Result as Result

_EVENTS = ("Callback", "CheckpointEvent", "EvaluateEvent", "PhaseEvent", "ReportEvent", "StepEvent", "Stop")
__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(_EVENTS, "phases.callbacks"),
    "OwnCodeError": "errors",
    "OwnScorer": "tasks.own_scorer",
    "OwnTerm": "objectives.own_term",
    "Recipe": "config.schema",
    "Result": "verbs.result",
    "Taps": "objectives.own_term",
    "StoppedOnRequest": "errors",
    "TedError": "errors",
    "distill": "verbs.distill",
}
"""The module of each public name."""
__all__ = [
    "Callback",
    "CheckpointEvent",
    "EvaluateEvent",
    "OwnCodeError",
    "OwnScorer",
    "OwnTerm",
    "PhaseEvent",
    "Recipe",
    "ReportEvent",
    "Result",
    "StepEvent",
    "Stop",
    "StoppedOnRequest",
    "Taps",
    "TedError",
    "__version__",
    "distill",
]


def __getattr__(name: str) -> Any:
    """A public name, loaded from its module and kept here."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
