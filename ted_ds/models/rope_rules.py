"""Which rules a config names for rotary positions, read without torch, and which of them rows of a batch may share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KEYS = ("rope_parameters", "rope_scaling")
KNOWN_RULES = ("default", "linear", "proportional", "yarn", "llama3", "dynamic", "longrope")
"""Transformers' own. All but the last two give a position the same angles always; ``dynamic`` does up to the model's
longest sequence, and for ``longrope`` see :mod:`ted_ds.models.positions`."""


def rope_rules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The rules that a ``config.json`` names, for all layers or for each type of them; none where it is silent.

    Under both names: where a file has both, it is transformers' version that chooses, so each rule has to be known.
    """
    return tuple(dict.fromkeys(rule for key in KEYS for rule in _named(config.get(key))))


def _named(settings: Any) -> Iterator[str]:
    if not isinstance(settings, Mapping):
        return
    rule = settings.get("rope_type", settings.get("type"))
    if isinstance(rule, str):
        yield rule
    for of_layers in settings.values():
        yield from _named(of_layers)
