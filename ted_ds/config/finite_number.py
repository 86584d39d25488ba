"""What counts as a number where a user may write anything."""

from __future__ import annotations

import math
from typing import Any


def is_finite_number(value: Any) -> bool:
    """Whether it is one; a truth value is none, though Python counts with it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
