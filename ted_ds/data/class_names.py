"""The names that a dataset declares for the ids in its columns, wherever ``datasets`` and the hub write them.

That is in the metadata of Arrow and Parquet files, in ``dataset_info.json`` beside what ``save_to_disk`` wrote, in
``dataset_infos.json``, and in the front matter of README.md.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ted_ds.data.dataset_card import read_card

ClassNames = Mapping[str, tuple[str, ...]]
"""By column, in the order of the ids."""
SAYS_NOTHING = re.compile(r"(LABEL_|class_?|label_?)?(\d+)")


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
    """Those of ``datasets.Features`` as JSON, or as a README.md has them."""
    if isinstance(features, list):  # of a README.md: [{name: ..., dtype: ...}, ...]
        features = {one["name"]: one for one in features if isinstance(one, Mapping) and "name" in one}
    if not isinstance(features, Mapping):
        return {}
    found = {str(column): _names_of(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names is not None}


def _names_of(feature: Any) -> tuple[str, ...] | None:
    """The names of a column; None where it has none, or such as say nothing."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0])
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        names = tuple(map(str, feature["names"]))
    elif isinstance(label := feature.get("class_label"), Mapping) and label.get("names"):
        names = tuple(map(str, label["names"].values() if isinstance(label["names"], Mapping) else label["names"]))
    else:
        inner = (feature.get(key) for key in ("feature", "dtype", "sequence", "list", "large_list"))
        return next((names for one in inner if (names := _names_of(one)) is not None), None)
    numbered = [SAYS_NOTHING.fullmatch(name) for name in names]
    says_nothing = all(match and int(match[2]) == index for index, match in enumerate(numbered))
    return None if says_nothing else names


def names_of_folder(folder: str, read: Callable[[str], str | None], *, name: str | None) -> ClassNames:
    """Those that the notes in a dataset's folder declare.

    Args:
        folder: What it is called in messages.
        read: Gives the text of one of its files, None where it is not there.
        name: The configuration; None for the default one.

    Raises:
        DataError: Its README.md cannot be understood.
    """
    card = read_card(folder, read)
    infos = card.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    found = _of_configuration({str(one.get("config_name", "default")): one for one in infos if one}, name)
    if not found:
        found = _of_configuration(_json(read("dataset_infos.json")), name)
    return names_in_features((found or _json(read("dataset_info.json"))).get("features"))


def _of_configuration(infos: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    chosen = infos.get(name or "default", next(iter(infos.values())) if len(infos) == 1 else {})
    return chosen if isinstance(chosen, Mapping) else {}


def _json(text: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
