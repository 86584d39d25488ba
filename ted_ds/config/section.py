"""What every part of the recipe has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

WHOLE = "whole"
"""Set in the validation context of a whole recipe: nothing is left open in it, and its rules are looked at once all of
it has been read. What is built in Python may leave open what follows from the rest, until then."""
NOTHING = object()
"""What stands for the values that a whole recipe lacks: it is of no type, so that each fails in its own place."""

Rule = Callable[[Any], Iterator[str]]


def open_value() -> Any:
    """The default of a key whose value follows from the rest of a recipe (:mod:`ted_ds.config.defaults`): none yet."""
    return None


def must_be_given(field: FieldInfo) -> bool:
    """Whether a whole recipe has some value of it, its own or one that followed."""
    return field.is_required() or field.default_factory is open_value


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

    @property
    def leaves_open(self) -> bool:
        """Whether something in it is left to follow from the rest of a recipe."""
        fields = type(self).model_fields
        return any(
            (value is None and fields[name].default_factory is open_value) or _leaves_open(value)
            for name, value in self.__dict__.items()
            if name in fields
        )

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Section:
        messages = [] if _is_whole(info) or self.leaves_open else [*self.broken_rules()]
        if messages:
            raise ValueError("\n".join(messages))
        return self

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_left_open(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        wanted = [name for name, field in cls.model_fields.items() if field.default_factory is open_value]
        if not _is_whole(info):  # in Python None is what a file has as null: it follows
            return {name: value for name, value in values.items() if value is not None or name not in wanted}
        return {**dict.fromkeys([name for name in wanted if values.get(name) is None], NOTHING), **values}

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


def _is_whole(info: ValidationInfo) -> bool:
    return bool((info.context or {}).get(WHOLE))


def _leaves_open(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_leaves_open, value.values()))
    if isinstance(value, list):
        return any(map(_leaves_open, value))
    return isinstance(value, Section) and value.leaves_open


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
