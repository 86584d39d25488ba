"""Mistakes that pydantic finds, in this project's words: where, what was given, and the rule."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ted_ds.config.extends import shortened
from ted_ds.config.layers import LAYER_NAME
from ted_ds.config.nearest import nearest
from ted_ds.config.places import TASK_KINDS, dotted, own_keys, sections_at
from ted_ds.config.schema import Recipe
from ted_ds.config.section import NOTHING

OWN_WORDS = ("value_error", "assertion_error")
"""Errors whose text a rule of the schema gave."""
PATTERNS = {r"^[\w.-]+$": "letters, digits, '_', '.' and '-'", LAYER_NAME: "the form encoder.3 or decoder.3"}
BOUNDS = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "at most {}"}


def in_words(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    """A message for each mistake."""
    for item in errors:
        place = own_keys(item["loc"])
        kind, value = item["type"], item["input"]
        if value is NOTHING:
            yield f"{dotted(place)}: this key is required"
        elif kind == "extra_forbidden":
            yield f"{dotted(place)}: unknown key{_hint(item['loc'])}"
        elif kind == "invalid_key":
            yield f"{dotted(place[:-1]) or 'the recipe'}: {value!r}: a key is a name; put it into quotes, or remove it"
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            kinds = f"use one of {', '.join(sorted(TASK_KINDS))}"
            given = f"{value['kind']!r}" if kind == "union_tag_invalid" else "this key is required"
            yield f"{dotted(place)}.kind: {given}{'; ' if given.startswith('this') else ': '}{kinds}"
        elif kind == "missing" and not isinstance(place[-1], int):
            yield f"{dotted(place)}: this key is required"
        elif kind in OWN_WORDS:
            given = "" if isinstance(value, dict | BaseModel) else f"{_shown(value)}: "
            where = f"{dotted(place)}: " if place else ""
            yield f"{where}{given}{item['msg'].removeprefix('Value error, ')}"
        else:
            loc = item["loc"][:-1] if kind == "missing" else item["loc"]  # of a pair, one is: it is about the pair
            place = place[:-1] if kind == "missing" else place
            quotes = "; put it into quotes" if kind == "string_type" and isinstance(value, int | float) else ""
            yield f"{dotted(place)}: {_shown(value)}: use {_rule_at(loc)}{quotes}"


def _shown(value: Any) -> str:
    return shortened("null" if value is None else repr(value))


# --- unknown keys -----------------------------------------------------------------------------------------------------


def _hint(location: Sequence[int | str]) -> str:
    key, *_ = reversed([str(part) for part in location])
    names = {name for model in sections_at(Recipe, list(location[:-1])) for name in model.model_fields}
    found = nearest(key, names)
    if found:
        return f"; did you mean {found}?"
    here = dotted([part for part in location[:-1] if isinstance(part, str) and part not in TASK_KINDS])
    inside = [path for path, model in _sections(Recipe) if key in model.model_fields and path.startswith(here)]
    if inside:
        return f"; it belongs to {', '.join(inside[:-1])}{' or ' if inside[:-1] else ''}{inside[-1]}"
    return f"; known here: {', '.join(sorted(names))}"


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section of the recipe by its path; the kinds of tasks are one another's rivals, and left out."""
    for name, field in model.model_fields.items():
        for child in sections_at(field.annotation, []):
            where = f"{path}.{name}".lstrip(".")
            if "kind" not in child.model_fields or len(get_args(child.model_fields["kind"].annotation)) != 1:
                yield where, child
                yield from _sections(child, where)


# --- rules ------------------------------------------------------------------------------------------------------------


def _rule_at(location: Sequence[int | str]) -> str:
    """The rule of the value at a place."""
    names = [index for index, part in enumerate(location) if isinstance(part, str)]
    found = ((index, model) for index in reversed(names) for model in sections_at(Recipe, list(location[:index])))
    # the others are names of the user's own, or places in lists
    last, model = next(one for one in found if str(location[one[0]]) in one[1].model_fields)
    field = model.model_fields[str(location[last])]
    annotation, metadata = field.annotation, field.metadata
    for index in location[last + 1 :]:
        if _is_of_an_item(annotation, index):  # else it says which of several types was tried
            annotation, metadata = _item(annotation, index)
    return rule_of(annotation, metadata)


def _is_of_an_item(annotation: Any, index: int | str) -> bool:
    kinds = [get_origin(part) for part in (annotation, *get_args(annotation))]
    return dict in kinds or (isinstance(index, int) and (list in kinds or tuple in kinds))


def _item(annotation: Any, index: int | str) -> tuple[Any, Sequence[Any]]:
    """Type and bounds of an item of a list or tuple, or of a mapping with names of the user's own."""
    inner = next(part for part in (annotation, *get_args(annotation)) if get_origin(part) in (list, tuple, dict))
    arguments = [part for part in get_args(inner) if part is not Ellipsis]
    if get_origin(inner) is dict:
        return _split(arguments[1])
    return _split(arguments[min(int(index), len(arguments) - 1)])


def _split(annotation: Any) -> tuple[Any, Sequence[Any]]:
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    inner, *marks = get_args(annotation)
    return inner, [bound for mark in marks for bound in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]


def rule_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of a type must be, in words, e.g. ``a whole number above 0, or null``."""
    annotation, more = _split(annotation)
    metadata = [*metadata, *more]
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        rules = [*dict.fromkeys(rule_of(part, metadata) for part in parts)]
        if len(parts) < len(get_args(annotation)):
            return f"{', '.join(rules)}, or null"
        return " or ".join(rules)
    if get_origin(annotation) is Literal:
        *names, last = map(str, get_args(annotation))
        return f"{', '.join(names)} or {last}" if names else last
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        if Ellipsis not in parts:
            return f"a list of {len(parts)} values, each {rule_of(parts[0])}"
    if get_origin(annotation) in (list, tuple):
        shortest = _bounds(metadata).get("min_length", 0)
        return f"a list{f' of {shortest} or more' if shortest else ''}, each {rule_of(get_args(annotation)[0])}"
    bounds = _bounds(metadata)
    if annotation is int:
        return f"a whole number{_within(bounds)}"
    if annotation is float:
        return f"a number{_within(bounds)}"
    if annotation is bool:
        return "true or false"
    if annotation is Path:
        return "the path of a file or folder"
    if annotation is str:
        if "pattern" in bounds:
            return f"a text of {PATTERNS[bounds['pattern']]}"
        return "a text" + (" that is not empty" if bounds.get("min_length") else "")
    return "a section of keys and values"


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    names = (*BOUNDS, "min_length", "pattern")
    return {name: getattr(one, name) for one in metadata for name in names if getattr(one, name, None) is not None}


def _within(bounds: dict[str, Any]) -> str:
    numbers = {name: f"{bounds[name]:g}" for name in BOUNDS if name in bounds}
    if "ge" in numbers and len(numbers) == 2:
        highest = numbers["le"] if "le" in numbers else f"below {numbers['lt']}"
        return f" from {numbers['ge']} to {highest}"
    joined = " and ".join(BOUNDS[name].format(number) for name, number in numbers.items())
    return f", {joined}" if "ge" in numbers else f" {joined}".rstrip()
