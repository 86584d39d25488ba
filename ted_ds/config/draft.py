"""A recipe with mistakes, read as far as it goes: one mistake does not hide the others."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import MinLen
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ted_ds.config.defaults import Reasons
from ted_ds.config.extends import Chain
from ted_ds.config.nearest import meant_by
from ted_ds.config.places import Location, dotted, own_keys, sections_at
from ted_ds.config.schema import Recipe
from ted_ds.config.section import NOTHING, WHOLE, Section, must_be_given
from ted_ds.config.tasks import Task

NUMBER_OF_STAND_IN = 2
TEXT_OF_STAND_IN = "stand-in"
STAND_IN_TASK = {"kind": "sequence_classification", "labels": [TEXT_OF_STAND_IN, f"{TEXT_OF_STAND_IN} 2"]}
"""Of a kind that is not known: nothing is said of what depends on it."""


@dataclass
class Draft:
    """What could be understood."""

    recipe: Recipe | None = None
    """With stand-ins for what is wrong or missing; None where there is nothing to put in its place."""
    errors: list[ErrorDetails] = field(default_factory=list)
    """Keys and values that are wrong by themselves, in pydantic's words."""
    beside: list[str] = field(default_factory=list)
    """What is wrong before values are looked at: keys that stand twice in the file, with their lines, or that say again
    what ``data.glue`` does, ``${...}`` that lead nowhere, and overrides that have no place."""
    left_out: list[Location] = field(default_factory=list)
    """Keys whose values were left out for that: that they are missing is no mistake of its own."""
    broken_rules: list[str] = field(default_factory=list)
    """What is wrong among values, with their place; not where a stand-in takes part."""
    stand_ins: list[Location] = field(default_factory=list)
    """Keys of which the recipe here says something else than the user's."""
    chain: Chain = field(default_factory=Chain)
    """The files it was read from."""
    reasons: Reasons = field(default_factory=dict)
    """Why values are what they are that no file says, by their places."""

    @property
    def knows_task(self) -> bool:
        """Whether the recipe's kind of task is the user's."""
        return ("task",) not in self.stand_ins

    def leave_out(self, place: str, why: str | None = None) -> None:
        """Note that a value is left out, and what is wrong with it."""
        location = _location(place)
        if location:
            self.left_out.append(location)
            self.stand_ins.append(location)
        if why is not None:
            self.beside.append(why)

    def has_left_out(self, place: str) -> bool:
        """Whether a value, or what is around it, was left out."""
        return any(_location(place)[: len(one)] == one for one in self.left_out)

    def concerns_a_stand_in(self, message: str) -> bool:
        """Whether a message is about a value that the user did not write."""
        return TEXT_OF_STAND_IN in message or any(_is_about(message, location) for location in self.stand_ins)


def read_draft(data: Any, draft: Draft, filled: Collection[str]) -> Draft:
    """Validate ``data`` into a draft, and where something is wrong put a stand-in there and go on.

    A key that is unknown is left out, a wrong value becomes the default or, where there is none, some value of its
    type. Those at the places that were ``filled`` are not the user's.
    """
    mender = _Mender(copy.deepcopy(data), draft, filled)
    is_first = True
    while draft.recipe is None:
        try:
            draft.recipe = Recipe.model_validate(mender.data, context={WHOLE: True})
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if is_first:
                draft.errors = [one for one in errors if not _is_left_out(one, draft.left_out)]
            is_first = False
            if not mender.mend(errors):
                return draft
    rules = [f"{where}: {line}" if where else line for where, line in _broken_rules(draft.recipe, "")]
    if not draft.knows_task:  # those of the whole recipe ask what the task is
        rules = [f"{where}: {line}" for where, line in _broken_rules(draft.recipe, "") if where]
    draft.broken_rules = [rule for rule in rules if not draft.concerns_a_stand_in(rule)]
    return draft


def _location(place: str) -> Location:
    """A place as :func:`ted_ds.config.places.dotted` writes it, by its parts."""
    return tuple(int(one) if one.isdecimal() else one for one in re.findall(r"[^.\[\]]+", place))


def _is_left_out(error: ErrorDetails, left_out: Sequence[Location]) -> bool:
    """Whether a value is missing because it was left out."""
    is_missing = error["type"] in ("missing", "union_tag_not_found") or error["input"] in (None, NOTHING)
    place = own_keys(error["loc"])
    return is_missing and any(place[: len(one)] == one for one in left_out)


class _Mender:
    """Puts something right in the place of wrong values."""

    def __init__(self, data: Any, draft: Draft, filled: Collection[str]) -> None:
        self.data = data
        self._stand_ins, self._filled = draft.stand_ins, filled
        self._mended: set[Location] = set()

    def mend(self, errors: Sequence[ErrorDetails]) -> bool:
        """Mend them; returns whether there was anything left to try."""
        tried = frozenset(self._mended)
        mended = [self._mend(one, tried) for one in errors]  # each of them
        return all(mended)

    def _mend(self, error: ErrorDetails, tried: Collection[Location]) -> bool:
        location = error["loc"]
        if error["type"] == "extra_forbidden":
            self._leave_out(location)
            return True
        for end in range(len(location) - 1, -1, -1):
            fields = [one.model_fields.get(str(location[end])) for one in sections_at(Recipe, location[:end])]
            fields = [one for one in fields if one is not None]
            if not fields:
                continue
            place = own_keys(location[: end + 1])
            parent = _parent(self.data, location[: end + 1])
            if place in tried or not isinstance(parent, dict):
                return False
            if place in self._mended:  # for another error of the same value
                return True
            self._mended.add(place)
            self._stand_ins.append(place)
            parent.pop(location[end], None)
            if must_be_given(fields[0]):
                parent[location[end]] = _stand_in(fields[0].annotation, fields[0].metadata)
                return parent[location[end]] is not None
            return True
        return False

    def _leave_out(self, location: Location) -> None:
        """Leave out an unknown key, which may be meant for one that is not given."""
        names = {name for section in sections_at(Recipe, location[:-1]) for name in section.model_fields}
        parent = _parent(self.data, location)
        meant = [(*own_keys(location[:-1]), key) for key in meant_by(str(location[-1]), names)]
        self._stand_ins += [one for one in meant if one[-1] not in parent or dotted(one) in self._filled]
        parent.pop(location[-1], None)


def _parent(data: Any, location: Sequence[int | str]) -> Any:
    for part in own_keys(location)[:-1]:
        data = data[part]
    return data


def _stand_in(annotation: Any, metadata: Sequence[Any] = ()) -> Any:
    """Some value of a type; None where that would be a guess at what the user wants."""
    if annotation == Task:
        return STAND_IN_TASK
    if get_origin(annotation) is Annotated:
        return _stand_in(*get_args(annotation)[:1])
    if get_origin(annotation) is list:
        length = max([1, *(rule.min_length for rule in metadata if isinstance(rule, MinLen))])
        return [_stand_in(get_args(annotation)[0])] * length
    if isinstance(annotation, type) and issubclass(annotation, Section):
        required = {name: field for name, field in annotation.model_fields.items() if must_be_given(field)}
        return {name: _stand_in(field.annotation, field.metadata) for name, field in required.items()}
    return {
        int: NUMBER_OF_STAND_IN,
        float: float(NUMBER_OF_STAND_IN),
        str: TEXT_OF_STAND_IN,
        Path: TEXT_OF_STAND_IN,
    }.get(annotation)


def _broken_rules(section: Section, where: str) -> Iterator[tuple[str, str]]:
    for rule in section.broken_rules():
        for line in rule.splitlines():
            yield where, line
    for name in type(section).model_fields:
        value = getattr(section, name)
        place = f"{where}.{name}" if where else name
        yield from _broken_within(value, place)


def _broken_within(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Section):
        yield from _broken_rules(value, place)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _broken_within(one, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _broken_within(one, f"{place}.{key}")


def _is_about(message: str, location: Location) -> bool:
    """Whether a message names a key, whole or by its last part within the message of its section."""
    section, key = dotted(location[:-1]), re.escape(str(location[-1]))
    whole = re.escape(f"{section}.") + key if section else key
    if re.search(rf"(?<![\w./]){whole}(?![\w/])", message):
        return True
    return section != "" and message.startswith(section) and re.search(rf"(?<!\w){key}(?!\w)", message) is not None
