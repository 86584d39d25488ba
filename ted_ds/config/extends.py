"""A recipe that extends another: small files, each with what it changes of the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ted_ds.config.yaml_file import read_yaml
from ted_ds.errors import ConfigError

KEY = "extends"
COMMAND_LINE = "command line"
"""Where overrides stand that are none, in messages."""
MOST_FILES = 10
MOST_SHOWN = 100
"""Characters of a value, or of an override."""
WORDS = ("name", "task", "data", "study")
"""Keys that are words of any message, too."""
PLACE = re.compile(r"[\w.\[\]]+(?=: )")
"""That a message begins with."""


class OwnOverride(str):
    """An override that a program made, and no user wrote: messages do not speak of it."""


@dataclass
class Chain:
    """The files of a recipe, and which of them says what."""

    files: list[Path] = field(default_factory=list)
    """The one that was named, the one it extends, and so on."""
    origins: dict[str, Path] = field(default_factory=dict)
    """Of each value and section, by its place, the first of the files that gives something of it."""
    repeated: dict[str, Path] = field(default_factory=dict)
    """Messages about keys that are given twice in one file, and which."""
    overridden: dict[str, str] = field(default_factory=dict)
    """What overrides give anew, by its place: each as it was written."""
    followed: dict[str, str] = field(default_factory=dict)
    """Paths that are from a recipe's folder (:mod:`ted_ds.config.relative_paths`), as they are written, by place."""
    missing: dict[str, str] = field(default_factory=dict)
    """Of paths where nothing is, what is to be said of the other place they could be from, by place."""

    def place(self, message: str) -> str:
        """A message about a place in the recipe, after the file that says what is there.

        Others may say what does not go with it: so the one that was named is named with it.
        """
        if message.startswith(f"{COMMAND_LINE}: "):
            return message
        file, first = self._file_of(message), self.files[0]
        match = PLACE.match(message)
        if match is not None and match[0] in self.missing and "no such" in message.lower():
            message += f" ({self.missing[match[0]]})"
        overrides = [shortened(one) for one in self._overrides_in(message) if not isinstance(one, OwnOverride)]
        if overrides:
            message += f" (given as {', '.join(overrides)})"
        return f"{file}: {message}" if file == first else f"{file} (extended by {first}): {message}"

    def _file_of(self, message: str) -> Path:
        if message in self.repeated:
            return self.repeated[message]
        match = PLACE.match(message)
        return self.file_of(match[0] if match else "")

    def _overrides_in(self, message: str) -> list[str]:
        """The overrides that a message is about: that of its place, and those that it names, of a section too."""
        match = PLACE.match(message)
        place = match[0] if match else ""
        own, section = self._override_at(place), f"{place}." if place else ""
        named = {key: key.removeprefix(section) if section and own is None else key for key in self.overridden}
        is_of_files = place == "" or place in self.origins
        return [
            written
            for key, written in self.overridden.items()
            if written == own
            or (not is_of_files and key.startswith(section))
            or re.search(rf"(?<![\w./])({_as_named(named[key])}|{_as_named(key)})(?![\w/.])", message)
        ]

    def file_of(self, place: str) -> Path:
        """The file that says what is at a place, or at the nearest around it."""
        while place and place not in self.origins:
            place = around(place)
        return self.origins.get(place, self.files[0])

    def override(self, place: str, written: str) -> None:
        """Note that a value was given anew, on the command line, and how that was written."""
        self._replace(None, place, self.files[0])
        inside = (f"{place}.", f"{place}[")
        self.overridden = {one: its for one, its in self.overridden.items() if not one.startswith(inside)}
        self.overridden[place] = written

    def is_from_command_line(self, place: str) -> bool:
        """Whether a value is from there, alone or with all around it."""
        return self._override_at(place) is not None

    def _override_at(self, place: str) -> str | None:
        while place and place not in self.overridden:
            place = around(place)
        return self.overridden.get(place)

    def lay_over(self, below: Any, above: Any, place: str, file: Path) -> Any:
        """What values and those that ``file`` puts over them come to at a place; notes whose they are."""
        if not isinstance(below, dict) or not isinstance(above, dict) or _is_another_task(below, above, place):
            self._replace(above, place, file)
            return above
        self.origins[place] = file
        merged = {**below}
        for key, value in above.items():
            merged[key] = self.lay_over(below.get(key), value, f"{place}.{key}".lstrip("."), file)
        return merged

    def _replace(self, value: Any, place: str, file: Path) -> None:
        inside = (f"{place}.", f"{place}[")
        self.origins = {one: its for one, its in self.origins.items() if not one.startswith(inside)}
        self.origins |= dict.fromkeys(_places(value, place), file)


def _as_named(key: str) -> str:
    """How messages name a key: one that they are full of as a word, with what it is."""
    return rf"{key}(?=[:=])" if key in WORDS else re.escape(key)


def shortened(text: str) -> str:
    """A text as far as a message has room for it."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."


def around(place: str) -> str:
    """The place of what holds a place; of the whole recipe none."""
    return re.sub(r"(\.?[^.\[\]]+|\[\d+\])$", "", place)


def read_chain(path: Path) -> tuple[DictConfig, Chain]:
    """The tree of a recipe's values, those of the files it extends under its own.

    Mappings are merged key by key. Anything else takes the place of what it extends: a list as a whole, null as a value
    like any other, and a ``task`` of another kind.

    Raises:
        ConfigError: There is no such file, or no mapping in it; or what it extends is none, or is extended by it.
    """
    chain = Chain()
    trees: list[DictConfig] = []
    current: Path | None = path
    while current is not None:
        tree, repeated = read_yaml(current)
        chain.files.append(current)
        chain.repeated |= dict.fromkeys(repeated, current)
        trees.append(tree)
        current = _extended(tree, chain.files)
    merged: Any = None
    for tree, file in zip(reversed(trees), reversed(chain.files), strict=True):
        merged = chain.lay_over(merged, OmegaConf.to_container(tree, resolve=False), "", file)
    return (trees[0] if len(trees) == 1 else OmegaConf.create(merged)), chain


def _extended(tree: DictConfig, files: list[Path]) -> Path | None:
    """The file that the last of ``files`` extends, whose tree loses the key; None where it extends none."""
    own = files[-1]
    if KEY not in tree:
        return None
    given = OmegaConf.to_container(tree, resolve=False)[KEY]  # type: ignore[index,call-overload]
    del tree[KEY]
    if not isinstance(given, str) or not given:
        raise ConfigError(
            f"{own}: {KEY}: {given!r}: use the path of one recipe, from the folder of this one; that recipe may extend "
            "another"
        )
    base = own.parent / given
    if not base.is_file():
        raise ConfigError(
            f"{own}: {KEY}: {given!r}: no such recipe file, looked for in the folder of this one ({base})"
        )
    known = [file.resolve() for file in files]
    if base.resolve() in known:
        circle = [*files[known.index(base.resolve()) :], base]
        raise ConfigError(f"{own}: {KEY}: {given!r}: leads back to itself: {' extends '.join(map(str, circle))}")
    if len(files) == MOST_FILES:
        raise ConfigError(
            f"{own}: {KEY}: {given!r}: more than {MOST_FILES} files extend each other; merge some of them"
        )
    return base


def _is_another_task(below: dict[Any, Any], above: dict[Any, Any], place: str) -> bool:
    """Whether these are two tasks of which one's keys mean nothing to the other."""
    return place == "task" and "kind" in below and "kind" in above and below["kind"] != above["kind"]


def _places(content: Any, place: str) -> Iterator[str]:
    """A place and every place in what stands there."""
    yield place
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _places(value, f"{place}.{key}".lstrip("."))
    if isinstance(content, list):
        for index, value in enumerate(content):
            yield from _places(value, f"{place}[{index}]")
