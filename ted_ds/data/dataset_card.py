"""The front matter of a dataset's README.md, as the hub knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted_ds.errors import DataError

CARD = "README.md"


@dataclass(frozen=True)
class SplitSize:
    """What a card says of the size of a split."""

    num_rows: int
    num_bytes: int | None
    """Of its columns, in memory; None where the card does not say."""


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


def size_of_split(folder: Path, name: str | None, split: str) -> SplitSize:
    """What the card in a folder says of a split of a configuration (None: the default one), under ``dataset_info``.

    Raises:
        DataError: It says nothing of it, or is no YAML.
    """
    place = folder / CARD

    def read(file: str) -> str | None:
        return (folder / file).read_text(encoding="utf-8-sig", errors="replace") if (folder / file).is_file() else None

    given = read_card(str(folder), read).get("dataset_info")
    infos = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, Mapping)]
    if not infos:
        raise DataError(
            f"{place}: no dataset_info in its front matter; copy the card of the data set there, or remove the folder"
        )
    by_name = {str(one.get("config_name", "default")): one for one in infos}
    wanted = name or ("default" if "default" in by_name or len(by_name) > 1 else next(iter(by_name)))
    splits = by_name.get(wanted, {}).get("splits")
    rows = {str(one["name"]): one for one in splits or () if isinstance(one, Mapping) and "name" in one}
    number, num_bytes = rows.get(split, {}).get("num_examples"), rows.get(split, {}).get("num_bytes")
    if type(number) is not int or number < 0 or not (num_bytes is None or type(num_bytes) is int):
        has = f"splits {', '.join(rows)}" if rows else f"configurations {', '.join(by_name)}"
        raise DataError(
            f"{place}: dataset_info says no num_examples of split {split!r} of configuration {wanted!r}, a whole "
            f"number (it has the {has}); add it, or correct the source"
        )
    return SplitSize(number, num_bytes)
