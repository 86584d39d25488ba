"""A JSON file as an object, with what a plain reader takes without a word: keys that are given twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class JsonObject(dict[str, Any]):
    """An object of JSON that knows each key it was given: of two that are the same, ``json`` keeps the last."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        """Take what ``object_pairs_hook`` gets."""
        super().__init__(pairs)
        self.keys_given = [key for key, _ in pairs]

    @property
    def repeated(self) -> list[str]:
        """The keys it was given more than once."""
        return [key for key, count in Counter(self.keys_given).items() if count > 1]


def read_json_object(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The object in ``path``, and what is wrong with the file; None where there is no object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=JsonObject)
    except UnicodeDecodeError as error:
        return None, [f"{path}: not readable as JSON: not UTF-8 text ({error.reason}); save it as UTF-8"]
    except (ValueError, OSError, RecursionError) as error:
        hint = (
            "; JSON has no comments, which DeepSpeed's own reader would pass over: remove them"
            if _has_comments(path)
            else ""
        )
        return None, [f"{path}: not readable as JSON: {error}{hint}"]
    if not isinstance(content, dict):
        return None, [f"{path}: a DeepSpeed config is a JSON object, this is {type(content).__name__}"]
    repeated = [
        f"{path}: {key}: given twice; JSON takes the last one without a word: keep one" for key in _all(content)
    ]
    return json.loads(json.dumps(content)), repeated


def _has_comments(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (ValueError, OSError):
        return False
    return any(line.lstrip().startswith(("//", "#", "/*")) for line in lines)


def _all(node: Any, place: str = "") -> Iterator[str]:
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from _all(child, f"{place}[{index}]")
    if isinstance(node, JsonObject):
        yield from (f"{place}.{key}".lstrip(".") for key in node.repeated)
        for key, child in node.items():
            yield from _all(child, f"{place}.{key}".lstrip("."))
