"""Messages about a recipe, without what tests of every other thing need not say."""

from __future__ import annotations

import re

OF_OVERRIDES = re.compile(r" \(given as .*\)$", re.MULTILINE)
"""How a value was given on the command line, which ``tests/unit/config/test_draft.py`` looks at."""


def without_overrides(message: str) -> str:
    """A message as it would be of the same values in the file."""
    return OF_OVERRIDES.sub("", message)
