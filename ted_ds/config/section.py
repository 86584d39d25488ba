"""What every part of the recipe has in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Switch(str):
    """A true or false where a number is wanted: a word, which is none; shown as it was given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Section(BaseModel):
    """A part of the recipe: frozen, unknown keys refused, and yes is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
