"""The JSON schema of a recipe, by which editors complete and explain its keys: made from the sections themselves.

It says less than ``ted-ds check``: a value may be a ``${...}``, and no key is required, as another file may give it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ted_ds.config.extends import KEY as EXTENDS
from ted_ds.config.load import CONSTANTS
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section
from ted_ds.config.shipped import AUTO, CHAT_TEMPLATES, DEEPSPEED, names_in

FILE = "ds_configs/recipe.schema.json"
"""Among what ships (:mod:`ted_ds.config.shipped`); ``ted-ds schema`` writes it anew."""
DIALECT = "http://json-schema.org/draft-07/schema#"
REFERENCE = "Reference"
ROLE = re.compile(r":\w+:`~?([^`]*)`")
NAMED = {"deepspeed": (str(AUTO), *names_in(DEEPSPEED, ".json")), "chat_template": names_in(CHAT_TEMPLATES, ".jinja")}
"""Keys whose value may be a name of what ships."""
OF_FILES: Mapping[str, Mapping[str, Any]] = {
    EXTENDS: {"type": "string", "description": "Path of the recipe that this one changes, from this one's folder."},
    CONSTANTS: {"type": "object", "description": "Values of names of your own; `${constants.NAME}` stands for one."},
}
"""Keys of a recipe's file that are none of the recipe."""


def recipe_schema() -> dict[str, Any]:
    """The schema, as JSON has it."""
    made = Recipe.model_json_schema()
    sections = {section.__name__: section for section in _sections(Recipe)}
    definitions = {name: _of_section(sections[name], one) for name, one in made.pop("$defs").items()}
    definitions[REFERENCE] = {
        "type": "string",
        "pattern": r"^.*\$\{.+\}.*$",
        "description": "Stands for another value.",
    }
    whole = _of_section(Recipe, made)
    whole["properties"] = {**OF_FILES, **whole["properties"]}
    return {"$schema": DIALECT, "title": "A recipe of ted_ds", **whole, "$defs": definitions}


def as_json() -> str:
    """The same as text: what ships as :data:`FILE`."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def _of_section(section: type[Section], made: Mapping[str, Any]) -> dict[str, Any]:
    said = descriptions_of(section)
    properties = {key: _of_key(key, one, said.get(key)) for key, one in made.get("properties", {}).items()}
    return {"type": "object", "description": _plain(section.__doc__), "additionalProperties": False} | (
        {"properties": properties} if properties else {}
    )


def _of_key(key: str, made: Mapping[str, Any], said: str | None) -> dict[str, Any]:
    """What may stand under a key: a section, or its values or a reference."""
    default = made.get("default")
    about = {"description": said} if said else {}
    about |= {} if default is None or isinstance(default, dict) else {"default": default}
    values = _relaxed({name: value for name, value in made.items() if name not in ("title", "default", "description")})
    if key in NAMED:
        return {**about, "anyOf": [{"enum": [*NAMED[key]]}, {"type": "string"}]}
    if not values:  # anything
        return about
    choices = values["anyOf"] if [*values] == ["anyOf"] else [values]
    if any("$ref" in one for one in choices):  # a section, whose mistakes are then said where they are
        return {**about, **({"anyOf": choices} if len(choices) > 1 else {"allOf": choices})}
    return {**about, "anyOf": [*choices, {"$ref": f"#/$defs/{REFERENCE}"}]}


def _relaxed(made: Any) -> Any:
    """Without what pydantic adds for others, in the words of the dialect."""
    if isinstance(made, list):
        return [_relaxed(one) for one in made]
    if not isinstance(made, dict):
        return made
    names = {"oneOf": "anyOf", "prefixItems": "items"}  # without its kind a task is several at once
    kept = {key: value for key, value in made.items() if key not in ("title", "discriminator", "required")}
    return {names.get(key, key): _relaxed(value) for key, value in kept.items()}


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Every section in a type, and in those."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _sections(field.annotation)
    else:
        for inner in get_args(annotation):
            yield from _sections(inner)


def descriptions_of(section: type[Section]) -> dict[str, str]:
    """What stands below each of a section's keys in its source, or in that of the sections it is made from."""
    found: dict[str, str] = {}
    for one in reversed(section.__mro__):
        if issubclass(one, Section) and one is not Section:
            found |= dict(_descriptions(one))
    return found


def _descriptions(section: type[Section]) -> Iterator[tuple[str, str]]:
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(defined, ast.ClassDef)
    for statement, below in zip(defined.body, defined.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield statement.target.id, _plain(text.value)


def _plain(text: str | None) -> str:
    """A docstring in one line, in Markdown."""
    return ROLE.sub(r"`\1`", " ".join((text or "").split())).replace("``", "`")
