"""Which known key a misspelt one may have been."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CLOSE = 0.75
"""Of the letters must agree: below it a hint sends people the wrong way (``epochs`` is not ``eps``)."""
ELSEWHERE = {"lr": "learning_rate"}
"""What other toolkits call it."""


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known keys that ``key`` may stand for, as a question's end: ``'a'`` or ``'a' or 'b'``; None without any."""
    return " or ".join(map(repr, meant_by(key, known))) or None


def meant_by(key: str, known: Iterable[str]) -> list[str]:
    """The known keys that ``key`` may stand for.

    A key that is part of known ones by whole words (``batch_size``) stands for these; else the closest one.
    """
    names = sorted(known)
    if ELSEWHERE.get(key) in names:
        return [ELSEWHERE[key]]
    words = [name for name in names if f"_{key}_" in f"_{name}_" and name != key]
    if words:
        return words
    in_other_case = [name for name in names if name.lower() == key.lower()]
    if in_other_case:
        return in_other_case
    close = difflib.get_close_matches(key, names, n=1, cutoff=CLOSE)
    whole = [name for name in names if len(key) > 3 and (name.startswith(key) or key.startswith(name))]
    return (close or whole)[:1]
