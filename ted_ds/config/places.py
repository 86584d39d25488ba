"""Places in a recipe: as pydantic names them, as a user writes them, and which sections are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from ted_ds.config.section import Section
from ted_ds.config.tasks import Task

TASK_KINDS = frozenset(kind for task in get_args(Task) for kind in get_args(task.model_fields["kind"].annotation))
TYPE_TAG = re.compile(r"(int|float|str|bool)|(list|tuple|dict)\[.*\]")
"""What pydantic puts into the place of a value that may be of several types."""
Location = tuple[int | str, ...]


def dotted(location: Sequence[int | str]) -> str:
    """A place in the recipe as a user writes it."""
    text = ""
    for part in own_keys(location):
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def own_keys(location: Sequence[int | str]) -> Location:
    """Pydantic's location without the tags of unions, by ``kind`` or type, which nobody wrote as keys."""
    return tuple(
        part for part in location if part not in TASK_KINDS and not (isinstance(part, str) and TYPE_TAG.fullmatch(part))
    )


def sections_at(annotation: Any, path: Sequence[int | str]) -> list[type[Section]]:
    """The section classes that pydantic's ``path`` can lead to, starting from a type annotation.

    A union by ``kind`` puts the kind into the path.
    """
    if get_origin(annotation) is dict:  # by names of the user's own
        return sections_at(get_args(annotation)[1], path[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, Section)):
        inner = path[1:] if path and isinstance(path[0], int) else path
        return [model for arg in get_args(annotation) for model in sections_at(arg, inner)]
    kinds = get_args(annotation.model_fields["kind"].annotation) if "kind" in annotation.model_fields else ()
    if len(kinds) == 1 and path:
        if path[0] != kinds[0]:
            return []
        path = path[1:]
    if not path:
        return [annotation]
    field = annotation.model_fields.get(str(path[0]))
    return sections_at(field.annotation, path[1:]) if field else []
