"""What every part of the recipe has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

WITHOUT_RULES = "without_rules"
"""Set in the validation context of a draft, whose rules are looked at once all of it has been read."""

Rule = Callable[[Any], Iterator[str]]


def rule(method: Rule) -> Rule:
    """Mark a section's method as a rule: given that each value is right by itself, it says what is wrong among them."""
    method.is_rule = True  # type: ignore[attr-defined]
    return method


class Section(BaseModel):
    """A part of the recipe: frozen, unknown keys refused, rules among its values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def broken_rules(self) -> Iterator[str]:
        """What its own rules say, and not those of the sections in it."""
        for kind in reversed(type(self).__mro__):
            for method in vars(kind).values():
                if getattr(method, "is_rule", False):
                    yield from method(self)

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Section:
        messages = [] if (info.context or {}).get(WITHOUT_RULES) else [*self.broken_rules()]
        if messages:
            raise ValueError("\n".join(messages))
        return self
