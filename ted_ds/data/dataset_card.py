"""The front matter of a dataset's README.md, as the hub knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ted_ds.errors import DataError

CARD = "README.md"


def read_card(folder: str, read: Callable[[str], str | None]) -> Mapping[str, Any]:
    """What stands between the first two lines ``---``; nothing where there is none.

    Args:
        folder: What it is called in messages.
        read: Gives the text of one of its files, None where it is not there.

    Raises:
        DataError: It is no YAML.
    """
    import yaml

    lines = (read(CARD) or "").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError as error:
        raise DataError(
            f"{folder}/{CARD}: its front matter is no YAML: {' '.join(str(error).split())[:200]}"
        ) from error
    return found if isinstance(found, Mapping) else {}
