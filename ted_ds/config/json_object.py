"""A JSON file as an object, with what a plain reader takes without a word: keys that are given twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEEPEST = 50
TOO_DEEP = f"not readable as JSON: more than {DEEPEST} objects or lists within each other; a DeepSpeed config has a few"
PYTHONS_WORDS = {"True": "true", "False": "false", "None": "null"}
"""What JSON calls them."""


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


def read_json_object(path: Path) -> tuple[dict[str, Any] | None, list[str], list[str]]:
    """The object in ``path``, what is wrong with the file, and the places of keys that are given twice.

    The object is None where there is none in the file.
    """
    if path.is_dir():
        return None, [f"{path}: is a folder; give the file"], []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [f"{path}: not readable as JSON: not UTF-8 text ({error.reason}); save it as UTF-8"], []
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"], []
    try:
        content = json.loads(text, object_pairs_hook=JsonObject)
    except json.JSONDecodeError as error:
        return None, [f"{path}: not readable as JSON: {_what_is_wrong(text, error)}"], []
    except RecursionError:
        return None, [f"{path}: {TOO_DEEP}"], []
    except ValueError as error:  # a whole number of thousands of digits
        return None, [f"{path}: not readable as JSON: {error}"], []
    if not isinstance(content, dict):
        return None, [f"{path}: a DeepSpeed config is a JSON object, this is {type(content).__name__}"], []
    if _depth(content) > DEEPEST:
        return None, [f"{path}: {TOO_DEEP}"], []
    return json.loads(json.dumps(content)), [], list(_all(content))


def _depth(content: Any) -> int:
    """How many objects and lists are within each other."""
    depth, level = 0, [content]
    while level:
        depth += 1
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [child for part in parts for child in part if isinstance(child, dict | list)]
    return depth


def _what_is_wrong(text: str, error: json.JSONDecodeError) -> str:
    place = f"line {error.lineno}, column {error.colno}: "
    if not text.strip():
        return "the file is empty; {} is the least"
    rest, before = text[error.pos :].lstrip(), text[: error.pos].rstrip()
    if _has_comments(text):
        return f"{place}{error.msg}; JSON has no comments, which DeepSpeed's own reader would pass over: remove them"
    word = re.match(r"\w+", rest)
    if rest.startswith("'"):
        return f'{place}a single quote; JSON has double ones: "..."'
    if word and word[0] in PYTHONS_WORDS:
        return f"{place}{word[0]} is Python; write {PYTHONS_WORDS[word[0]]}"
    if (rest.startswith(("}", "]")) and before.endswith(",")) or error.msg.startswith("Illegal trailing comma"):
        return f"{place}a comma with nothing behind it; remove it"
    if not rest:
        return f"{place}the file ends too early; close every {{ [ and quote"
    if error.msg == "Extra data":
        return f"{place}more text behind the end of the object; remove it"
    if error.msg.startswith("Expecting property name"):
        return f"{place}a key in double quotes must stand here, not {rest.splitlines()[0][:20]!r}"
    return f"{place}{error.msg}, not {rest.splitlines()[0][:20]!r}"


def _has_comments(text: str) -> bool:
    return any(line.lstrip().startswith(("//", "#", "/*")) for line in text.splitlines())


def _all(node: Any, place: str = "") -> Iterator[str]:
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from _all(child, f"{place}[{index}]")
    if isinstance(node, JsonObject):
        yield from (f"{place}.{key}".lstrip(".") for key in node.repeated)
        for key, child in node.items():
            yield from _all(child, f"{place}.{key}".lstrip("."))
