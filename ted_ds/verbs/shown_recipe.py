"""``ted-ds check --show``: the whole recipe as it will run, as YAML, with where each value is from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section
from ted_ds.config.shipped import AUTO
from ted_ds.errors import counted
from ted_ds.planning.plan import Plan
from ted_ds.planning.value_sources import Sources

SAID_BY_SILENCE = ("schedule", "betas", "eps", "tokens", "heldout_tokens")
"""Settings that mean something else once they are given: a scheduler of the DeepSpeed JSON is then left aside, an
optimizer without them is refused, and so is too little calibration data."""
WIDTH = 10_000
"""Of a line, which is not broken."""
Keys = tuple[str | int, ...]


def shown_recipe(recipe: Recipe, plan: Plan, *, num_ranks: int) -> str:
    """The recipe as YAML, which is again a recipe, and the same one.

    A default that would be refused, or would mean something else, if it were given stands there as a comment.
    """
    if plan.chooses_deepspeed:
        recipe = recipe.model_copy(update={"deepspeed": AUTO})
    shown = _Shown(recipe, Sources(recipe, plan, num_ranks), recipe.model_dump(mode="json", exclude_unset=True))
    files = " extends ".join(plan.files)
    lines = [
        f"# {files}, as it runs on {counted(num_ranks, 'rank')}; paths are from the working directory.",
        "# A value behind a # is a default that would be refused, or mean something else, if it were given.",
    ]
    return "\n".join([*lines, *shown.of_section(recipe, ())]) + "\n"


@dataclass
class _Shown:
    """Writes the lines of one recipe."""

    recipe: Recipe
    sources: Sources
    values: dict[str, Any]
    """What is written so far, and what is given."""

    def of_section(self, section: Section, path: Keys) -> Iterator[str]:
        """The lines of a section, without indentation."""
        for name in type(section).model_fields:
            yield from self._of_value(name, getattr(section, name), (*path, name), name in section.model_fields_set)

    def _of_value(self, name: str, value: Any, path: Keys, is_set: bool) -> Iterator[str]:
        place = _dotted(path)
        if self.sources.is_by_glue(place, is_set=is_set) and place == "data.train":
            yield from (f"# {line}" for line in self._of_list(name, value, path))
        elif isinstance(value, Section):
            yield from _under(f"{name}:", [*self.of_section(value, path)], is_set=is_set)
        elif isinstance(value, Mapping) and _has_sections(value):
            yield f"{name}:"
            for key, one in value.items():
                yield from _indented(self._of_value(_text(key), one, (*path, key), is_set=True))
        elif isinstance(value, list) and _has_sections(value):
            yield from self._of_list(name, value, path)
        else:
            line = f"{name}: {_text(_plain(value))}  # {self.sources.of(place, is_set=is_set)}"
            is_left_out = not is_set and (name in SAID_BY_SILENCE or not self._may_be_given(path, value))
            yield f"# {line}" if is_left_out else line

    def _of_list(self, name: str, sections: list[Section], path: Keys) -> Iterator[str]:
        yield f"{name}:"
        for index, one in enumerate(sections):
            first, *others = self.of_section(one, (*path, index))
            yield f"  - {first}"
            yield from (f"    {line}" for line in others)

    def _may_be_given(self, path: Keys, value: Any) -> bool:
        """Whether the recipe is the same with a default that it gives; if so, it does from now on."""
        tried = copy.deepcopy(self.values)
        holder: Any = tried
        for key in path[:-1]:
            holder = holder[key] if isinstance(key, int) else holder.setdefault(key, {})
        holder[path[-1]] = _plain(value)
        try:
            is_same = Recipe.model_validate(tried) == self.recipe
        except ValidationError:
            return False
        if is_same:
            self.values = tried
        return is_same


def _has_sections(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return isinstance(value, Section) or any(map(_has_sections, inside))


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _under(head: str, lines: list[str], *, is_set: bool) -> Iterator[str]:
    """A section's lines under its key."""
    if all(line.lstrip().startswith("#") for line in lines):
        head = f"{head} {{}}" if is_set else f"# {head}"
    yield head
    yield from _indented(lines)


def _indented(lines: Any) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _dotted(path: Keys) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _text(value: Any) -> str:
    written = yaml.safe_dump(without_secrets(value), default_flow_style=True, width=WIDTH, allow_unicode=True)
    return written.removesuffix("...\n").strip()
