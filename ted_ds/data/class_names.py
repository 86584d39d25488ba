"""The names that a dataset declares for the ids in its columns, wherever ``datasets`` and the hub write them.

That is in the metadata of Arrow and Parquet files, in ``dataset_info.json`` beside what ``save_to_disk`` wrote, in
``dataset_infos.json``, and in the front matter of README.md.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ted_ds.data.dataset_card import CARD, read_card
from ted_ds.errors import DataError

ClassNames = Mapping[str, tuple[str, ...]]
"""By column, in the order of the ids."""
SAYS_NOTHING = re.compile(r"(LABEL_|class_?|label_?)?(\d+)")
"""A name that says no more than the id it has."""


def names_in_schema(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """Those in the metadata of an Arrow schema or a Parquet file."""
    return _names_in_text((metadata or {}).get(b"huggingface", b""))


@functools.lru_cache(maxsize=256)  # of many files, as a rule the same
def _names_in_text(text: bytes) -> ClassNames:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    info = found.get("info") if isinstance(found, Mapping) else None
    return names_in_features(info.get("features") if isinstance(info, Mapping) else None)


def names_in_features(features: Any) -> ClassNames:
    """Those of ``datasets.Features`` as JSON, or as a README.md has them.

    Raises:
        DataError: What should be names for the ids of a column is none.
    """
    if isinstance(features, list):  # of a README.md: [{name: ..., dtype: ...}, ...]
        features = {one["name"]: one for one in features if isinstance(one, Mapping) and "name" in one}
    if not isinstance(features, Mapping):
        return {}
    found = {str(column): _names_of(feature, str(column)) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names is not None}


def _names_of(feature: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column; None where it has none."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0], column)
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel" and feature.get("names") is not None:
        return _in_order(feature["names"], column)
    if isinstance(label := feature.get("class_label"), Mapping) and "names" in label:
        return _in_order(label["names"], column)
    inner = (feature.get(key) for key in ("feature", "dtype", "sequence", "list", "large_list"))
    return next((names for one in inner if (names := _names_of(one, column)) is not None), None)


def _in_order(given: Any, column: str) -> tuple[str, ...]:
    """Names in the order of their ids: a list, or a mapping of each id to its name in any order."""
    where = f"column {column!r}: names"
    if isinstance(given, Mapping):
        by_id = {int(text): name for key, name in given.items() if (text := str(key)).isdecimal()}
        if len(by_id) < len(given) or by_id.keys() != set(range(len(by_id))):
            raise DataError(
                f"{where}: their ids are {', '.join(map(str, given))}; give every id from 0 to {len(given) - 1} once"
            )
        given = [by_id[number] for number in range(len(by_id))]
    if not isinstance(given, list):
        raise DataError(f"{where}: {given!r:.100} is no list of names, nor a mapping of ids to names; give one")
    for name in given:
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"{where}: {name!r:.100} is no text; give each name as text, in YAML within quotes")
    names = tuple(map(str, given))
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{where}: {doubled!r} is the name of more than one id; give each id a name of its own")
    return names


def say_nothing(names: Sequence[str]) -> bool:
    """Whether names say no more than the ids, such as ``LABEL_0`` and ``LABEL_1``."""
    numbered = [SAYS_NOTHING.fullmatch(name) for name in names]
    return all(match and int(match[2]) == index for index, match in enumerate(numbered))


def names_of_folder(folder: str, read: Callable[[str], str | None], *, name: str | None) -> ClassNames:
    """Those that the notes in a dataset's folder declare.

    Args:
        folder: What it is called in messages.
        read: Gives the text of one of its files, None where it is not there.
        name: The configuration; None for the default one.

    Raises:
        DataError: They cannot be understood.
    """
    for file, infos in _notes(folder, read):
        chosen = infos.get(name or "default", next(iter(infos.values())) if len(infos) == 1 else {})
        if chosen:
            return _names_in_info(f"{folder}/{file}", chosen)
    return {}


def names_around_files(folder: str, read: Callable[[str], str | None]) -> ClassNames:
    """Those that the notes beside files declare, of whichever configuration these are.

    Raises:
        DataError: The notes cannot be understood, or their configurations disagree.
    """
    for file, infos in _notes(folder, read):
        place = f"{folder}/{file}"
        found: dict[str, tuple[str, ...]] = {}
        for info in infos.values():
            for column, names in _names_in_info(place, info).items():
                if found.setdefault(column, names) != names:
                    raise DataError(
                        f"{place}: column {column!r}: its configurations declare other label names, {list(names)} and "
                        f"{list(found[column])}; give the folder as path, and name the configuration"
                    )
        if found:
            return found
    return {}


def _notes(folder: str, read: Callable[[str], str | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What each file of notes says, by configuration; the first that says something counts."""
    given = read_card(folder, read).get("dataset_info")
    infos = given if isinstance(given, list) else [] if given is None else [given]
    for one in infos:
        if not isinstance(one, Mapping):
            raise DataError(
                f"{folder}/{CARD}: dataset_info: {one!r:.100} is no mapping; give one with features, or remove it"
            )
    yield CARD, {str(one.get("config_name", "default")): one for one in infos if one}
    yield "dataset_infos.json", _json(read("dataset_infos.json"))
    yield "dataset_info.json", {"default": _json(read("dataset_info.json"))}


def _names_in_info(place: str, info: Any) -> ClassNames:
    features = info.get("features") if isinstance(info, Mapping) else None
    if not isinstance(features, list | Mapping | None):
        raise DataError(f"{place}: features: {features!r:.100} is no list of columns; give one, or remove it")
    try:
        return names_in_features(features)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _json(text: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
