"""The recipe reference, made of the schema: every section and key, its type, default, bounds and what it does."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ted_ds.config.recipe_schema import descriptions_of
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section, must_be_given
from website.markdown import cell, text_of_docstring

BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}
LENGTHS = {"min_length": "{} or more", "max_length": "{} or fewer"}
HEAD = """# Recipe reference

Every key that a recipe may have, made of the schema that reads it. Unknown keys are refused, with the nearest that is
known. How recipes are written, extended and overridden: [Recipes](../docs/recipes.md). Search finds keys by name.

"""


def members(annotation: Any) -> list[Any]:
    """The types that a value may have, without what pydantic is told beside them."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in members(part)]
    return [annotation]


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a value, or an item of it, may be."""
    found = []
    for kind in members(annotation):
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append(kind)
        else:
            found += [one for part in get_args(kind) if not isinstance(part, str) for one in sections_in(part)]
    return found


def in_words(annotation: Any) -> str:
    """A type, as a writer of YAML would say it."""
    return " or ".join(dict.fromkeys(map(_in_words, members(annotation))))


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{str(one).lower() if isinstance(one, bool) else one}`" for one in parts)
    if origin is list or (origin is tuple and Ellipsis in parts):
        return f"list of {in_words(parts[0])}"
    if origin is tuple:
        return "[" + ", ".join(map(in_words, parts)) + "]"
    if origin is dict:
        return f"mapping of {in_words(parts[1])}"
    if isinstance(kind, type) and issubclass(kind, Section):
        return "section"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(f"`{one.value}`" for one in kind)
    return {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Any: "any"}[kind]


def default_of(field: FieldInfo) -> str:
    """In YAML's words; nothing where the key must be given."""
    if field.is_required():
        return "**required**"
    if must_be_given(field):
        return "default: follows from the rest"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if isinstance(value, Section):
        return "default: its own"
    if value is None:
        return "default: unset"
    if isinstance(value, bool):
        return f"default: `{str(value).lower()}`"
    if isinstance(value, str | int | float | Path):
        return f"default: `{value}`"
    return f"default: `{list(value) if isinstance(value, tuple) else value}`"


def bounds_of(field: FieldInfo) -> str:
    """What else a value must keep."""
    is_text = str in members(field.annotation)
    said = [BOUNDS[name].format(f"{value:g}") for name in BOUNDS if (value := _told(field, name)) is not None]
    unit = "characters" if is_text else "items"
    said += [f"{LENGTHS[name].format(value)} {unit}" for name in LENGTHS if (value := _told(field, name)) is not None]
    pattern = _told(field, "pattern")
    return ", ".join([*said, *([f"as `{pattern}`"] if pattern else [])])


def _told(field: FieldInfo, name: str) -> Any:
    return next((value for one in field.metadata if (value := getattr(one, name, None)) is not None), None)


def walk(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section with the path it stands at, once: where it comes again, its first place is linked."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = (
            f"{path}.{name}".lstrip(".") + ("[]" if _is_list(field) else "") + (".NAME" if _is_mapping(field) else "")
        )
        for kind in sections_in(field.annotation):
            yield from walk(kind, inner)


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(kind) in (list, tuple) for kind in members(field.annotation))


def _is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(kind) is dict for kind in members(field.annotation))


def anchor(section: type[Section]) -> str:
    """Where a section is described."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", section.__name__).lower()


def page() -> str:
    """The whole reference."""
    places: dict[type[Section], list[str]] = {}
    for path, section in walk(Recipe):
        places.setdefault(section, []).append(path)
    return HEAD + "\n".join(_described(section, paths) for section, paths in places.items())


def _described(section: type[Section], paths: list[str]) -> str:
    kind = section.model_fields.get("kind")
    chosen = get_args(kind.annotation) if kind is not None and get_origin(kind.annotation) is Literal else ()
    title = paths[0] or "The recipe"
    if len(chosen) == 1:
        title += f": {chosen[0]}"
    lines = [f"## {title} {{ #{anchor(section)} }}", "", text_of_docstring(section.__doc__ or ""), ""]
    if len(paths) > 1:
        lines += ["The same at " + ", ".join(f"`{path}`" for path in paths[1:]) + ".", ""]
    said = descriptions_of(section)
    lines += ["| key | |", "|---|---|"]
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        value = ", ".join(filter(None, [in_words(field.annotation), bounds_of(field)]))
        links = ", ".join(f"[{one.__name__}](#{anchor(one)})" for one in inner)
        of_section = text_of_docstring(inner[0].__doc__ or "") if len(inner) == 1 else None
        remark = " ".join(filter(None, [said.get(name) or of_section, f"See {links}." if links else None]))
        lines.append(f"| `{name}`<br><small>{cell(value)}<br>{cell(default_of(field))}</small> | {cell(remark)} |")
    return "\n".join([*lines, ""])
