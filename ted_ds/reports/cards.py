"""A few examples to read: predictions that training has changed, and texts that models write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """One example."""

    title: str
    text: str
    said: Sequence[tuple[str, str]]
    """Of each model, and of the label, by name."""


def cards_of(samples: Mapping[str, Any]) -> list[Card]:
    """Those of ``evaluate/samples.json``."""
    changed = [
        Card(one["change"], one["text"], [("label", one["label"]), *one["predictions"].items()])
        for one in samples.get("changed", ())
    ]
    written = [Card("goes on from", one["beginning"], [*one["written"].items()]) for one in samples.get("written", ())]
    return changed + written
