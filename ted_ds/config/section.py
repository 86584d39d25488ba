"""What every part of the recipe has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

WITHOUT_RULES = "without_rules"
"""Set in the validation context of a draft, whose rules are looked at once all of it has been read."""

Rule = Callable[[Any], Iterator[str]]


def rule(method: Rule) -> Rule:
    """Mark a section's method as a rule: given that each value is right by itself, it says what is wrong among them."""
    method.is_rule = True  # type: ignore[attr-defined]
    return method


class Switch(str):
    """A true or false where a number is wanted: a word, which is none; shown as it was given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Section(BaseModel):
    """A part of the recipe: frozen, unknown keys refused, yes is no number, and rules among its values."""

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

    @model_validator(mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, values: Any) -> Any:
        """Python, and so pydantic, reads true, and YAML's ``yes``, as 1: let it fail in its own place."""
        if not isinstance(values, dict):
            return values
        fields = {name: field for name, field in cls.model_fields.items() if name in values}
        numbers = [
            name
            for name, field in fields.items()
            if bool not in (kinds := _kinds(field.annotation)) and {int, float} & kinds
        ]
        return {**values, **{name: _without_switches(values[name]) for name in numbers}}


def _kinds(annotation: Any) -> set[Any]:
    """All the types an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*map(_kinds, parts))


def _without_switches(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_switches(one) for one in value]
    return Switch(value) if isinstance(value, bool) else value
