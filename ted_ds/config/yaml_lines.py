"""In which line of a YAML file a value stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

MERGE = "tag:yaml.org,2002:merge"


def lines_of(file: Path) -> dict[str, int]:
    """The line of each key and entry by its place, counted from 1; of an alias, that of what it stands for.

    The file is YAML that was read before.
    """
    root = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    found: dict[str, int] = {}
    for place, line in _walk(root, ""):
        found.setdefault(place, line)
    return found


def _walk(node: yaml.Node | None, place: str) -> Iterator[tuple[str, int]]:
    """Places in a node; a mapping's own keys before those that it merges, which it overrides."""
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            yield f"{place}[{index}]", entry.start_mark.line + 1
            yield from _walk(entry, f"{place}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag != MERGE:
            own = f"{place}.{key.value}".lstrip(".")
            yield own, key.start_mark.line + 1
            yield from _walk(value, own)
    for key, value in node.value:
        if key.tag == MERGE:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _walk(merged, place)
