"""What may be written down of a recipe: addresses without passwords and signatures."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://")


def without_secrets(value: Any) -> Any:
    """A copy in which each URL has lost its user, password, query and fragment; a signed URL is the same when renewed.

    Looks into dicts (keys, too) and lists.
    """
    if isinstance(value, dict):
        return {without_secrets(key): without_secrets(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_secrets(one) for one in value]
    if isinstance(value, str) and ADDRESS.match(value):
        parts = urlsplit(value)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return value
