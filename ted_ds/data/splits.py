"""Which files of a dataset's folder belong to which split, by the conventions of the ``datasets`` library.

They are those of its documentation ("Structure your repository"): the configurations that the dataset card names, else
shards ``data/SPLIT-00000-of-00001.*``, else folders named after splits, else files named after them, else all files are
``train``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ted_ds.data.dataset_card import CARD, read_card
from ted_ds.errors import DataError

WORDS_OF_SPLIT = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BETWEEN_WORDS = "[-._ 0-9]"
SHARD = re.compile(r"data/([^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
HONOURED_KEYS = {"config_name", "data_files", "data_dir", "default", "features", "dataset_info"}
HARMLESS_KEYS = {"description", "version", "drop_labels", "sep", "delimiter"}
"""Of a configuration; columns are found whatever separates them."""

Splits = Mapping[str, Sequence[str]]
"""Files, by split."""


def splits_of_folder(
    folder: str, files: Sequence[str], read: Callable[[str], str | None], *, name: str | None
) -> Splits:
    """The splits of a folder.

    Args:
        folder: What it is called in messages.
        files: Its data files, relative to it.
        read: Gives the text of one of its files, None where it is not there.
        name: The configuration; None for the default one.

    Raises:
        DataError: There is no such configuration, or the card says what is not understood.
    """
    configurations = _configurations(folder, read)
    if not configurations:
        if name is not None:
            raise DataError(f"{folder}: name: {name!r}: its {CARD} names no configurations; leave name out")
        return splits_by_name(files)
    one = configurations[_chosen(folder, configurations, name)]
    place = str(one.get("data_dir") or "").strip("/")
    if one.get("data_files") is None:
        inside = [file for file in files if not place or file.startswith(f"{place}/")]
        begin = len(place) + 1 if place else 0
        found = splits_by_name([file[begin:] for file in inside])
        return {
            split: [file if not place else f"{place}/{file}" for file in of_split] for split, of_split in found.items()
        }
    return {split: _matching(files, patterns) for split, patterns in _patterns(folder, one["data_files"]).items()}


def splits_by_name(files: Sequence[str]) -> Splits:
    """The splits that folders and files are named after."""
    shards = [(match[1], file) for file in files if (match := SHARD.fullmatch(file))]
    if shards:
        splits = sorted({split for split, _ in shards}, key=lambda split: (*map(split.__ne__, WORDS_OF_SPLIT), split))
        return {split: [file for of, file in shards if of == split] for split in splits}
    for is_folder in (True, False):
        found = {
            split: [file for file in files if _is_named(file, words, is_folder=is_folder)]
            for split, words in WORDS_OF_SPLIT.items()
        }
        if any(found.values()):
            return {split: of_split for split, of_split in found.items() if of_split}
    return {"train": list(files)}


def _is_named(file: str, words: Sequence[str], *, is_folder: bool) -> bool:
    *folders, base = file.split("/")
    after = f"({BETWEEN_WORDS}.*)?" if is_folder else f"{BETWEEN_WORDS}.*"
    pattern = re.compile(f"(.*{BETWEEN_WORDS})?({'|'.join(words)}){after}", re.DOTALL)
    return any(pattern.fullmatch(part) for part in (folders if is_folder else [base]))


def _configurations(folder: str, read: Callable[[str], str | None]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    given = read_card(folder, read).get("configs") or []
    if not isinstance(given, list):
        raise DataError(f"{folder}/{CARD}: configs: {given!r:.200} is no list; give one, each with a config_name")
    for one in given:
        if not isinstance(one, Mapping) or not isinstance(one.get("config_name"), str):
            raise DataError(f"{folder}/{CARD}: configs: {one!r:.200} has no config_name; give each one")
        found[one["config_name"]] = one
    return found


def _chosen(folder: str, configurations: Mapping[str, Mapping[str, Any]], name: str | None) -> str:
    if name is None:
        default = [
            one
            for one, says in configurations.items()
            if len(configurations) == 1 or one == "default" or says.get("default")
        ]
        if len(default) != 1:
            raise DataError(f"{folder}: which configuration? Set name to one of {', '.join(configurations)}")
        name = default[0]
    if name not in configurations:
        raise DataError(f"{folder}: name: no configuration {name!r}; it has {', '.join(configurations)}")
    unknown = sorted(configurations[name].keys() - HONOURED_KEYS - HARMLESS_KEYS)
    if unknown:
        raise DataError(
            f"{folder}/{CARD}: configs: {name}: {', '.join(unknown)} would be ignored, which may change what is read; "
            "give the data files themselves as path"
        )
    return name


def _patterns(folder: str, given: Any) -> dict[str, list[str]]:
    """``data_files`` of a card: a pattern, several, or a list of ``{split, path}``."""
    if isinstance(given, str):
        return {"train": [given]}
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        return {"train": given}
    found: dict[str, list[str]] = {}
    for one in given if isinstance(given, list) else [given]:
        path = one.get("path") if isinstance(one, Mapping) else None
        paths = [path] if isinstance(path, str) else path
        if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths) or not one.get("split"):
            raise DataError(f"{folder}/{CARD}: data_files: {one!r:.200}: give a split and a path")
        if str(one["split"]) in found:
            raise DataError(f"{folder}/{CARD}: data_files: split {one['split']!r} is there twice; give each once")
        found[str(one["split"])] = paths
    return found


def _matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    from fsspec.utils import glob_translate  # a tenth of a second that most folders do not need

    regexes = [re.compile(glob_translate(pattern.removeprefix("./"))) for pattern in patterns]
    return [file for file in files if any(regex.match(file) for regex in regexes)]
