"""Do all hosts see the same? Compared before a run begins: what differs would train another model, or hang.

Ranks of one host share its files and packages; hosts with file systems or environments of their own may not.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ted_ds import __version__
from ted_ds.config.deepspeed import read_deepspeed_json
from ted_ds.config.redaction import without_secrets
from ted_ds.config.schema import Recipe
from ted_ds.data.reading.described import hash_of_ends
from ted_ds.data.reading.extents import DataFile
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.sources import is_remote
from ted_ds.errors import ConfigError, counted
from ted_ds.models.file_kinds import MODEL_PATTERNS, TEMPLATES_FOLDER
from ted_ds.models.files import ModelFacts
from ted_ds.models.found import family_as_json
from ted_ds.runtime.world import World

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "sentencepiece",
    "peft",
)
"""Whose versions may change what is computed, or what ranks say to each other."""
LOOKED_AT = 1 << 20
"""Bytes of a model's file from its beginning, and from its end: all of it is hashed later, where it is read."""
MOST_SHOWN = 6

View = Mapping[str, str]
"""What a host sees, by what it is called."""


def refuse_other_settings(world: World, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Make sure that all ranks have one recipe and the same packages, and were ``given`` the same beside it.

    Every rank must call it.

    Raises:
        ConfigError: They have not; on every rank.
    """
    view = {f"package {name}": _version_of(name) for name in PACKAGES}
    view |= {"package ted_ds": __version__, "python": platform.python_version()}
    view |= {f"given in Python, {key}": value for key, value in _flat(given).items()}
    view |= {f"recipe {key}": value for key, value in _flat(without_secrets(recipe.model_dump(mode="json"))).items()}
    view |= {f"{recipe.deepspeed} {key}": value for key, value in _flat(read_deepspeed_json(recipe.deepspeed)).items()}
    _refuse(world, view)


def refuse_other_files(world: World, models: Mapping[str, Path | None], listing: DataListing) -> None:
    """Make sure that all hosts see the same models and data; one rank of each looks. Every rank must call it.

    Of a model's file, and of data, the size and both ends are compared.

    Raises:
        ConfigError: They do not; on every rank.
    """
    view: dict[str, str] = {}

    def look() -> None:
        for side, folder in models.items():
            if folder is not None:
                view.update(view_of_model(side, folder))
        local = [file for source in listing.sources for file in source.files if not is_remote(file.url)]
        view.update({f"data {file.url}": _look_at_data(file) for file in local})

    world.first_on_host(look)
    _refuse(world, view if world.is_first_on_host else None)


def refuse_other_families(world: World, models: Mapping[str, ModelFacts | None]) -> None:
    """Make sure that all ranks found the same of models that have no record. Every rank must call it.

    Raises:
        ConfigError: They did not; on every rank.
    """
    view: dict[str, str] = {}
    for side, facts in models.items():
        if facts is not None and facts.family.found:
            view |= {f"{side} {key}": value for key, value in _flat(family_as_json(facts.family)).items()}
    _refuse(world, view)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        parts = [_flat(one, f"{path}.{key}" if path else str(key)) for key, one in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {path: repr(value)}


def view_of_model(side: str, folder: Path) -> dict[str, str]:
    """A model's files, whatever of them decides what it computes: their sizes and both ends."""
    patterns = (*MODEL_PATTERNS, f"{TEMPLATES_FOLDER}/*.jinja")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    found = {}
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            digest = hashlib.sha256(content.read(LOOKED_AT))
            content.seek(max(size - LOOKED_AT, 0))
            digest.update(content.read())
        found[f"{side} {file.relative_to(folder)}"] = f"{size:,} bytes, {digest.hexdigest()[:12]}"
    return found


def _look_at_data(file: DataFile) -> str:
    path = Path(file.url.removeprefix("file://"))
    if not path.is_file():
        return "no such file"
    size = path.stat().st_size
    ends = f", {hash_of_ends(str(path), size)}" if file.ends_sha256 else ""  # of many files, only some are looked into
    return f"{size:,} bytes{ends}"


def _refuse(world: World, view: View | None) -> None:
    views = [(host, one) for host, one in zip(world.hosts, world.gather(view), strict=True) if one is not None]
    differing = differences_between(views)
    with world.together():
        if differing:
            more = len(differing) - MOST_SHOWN
            raise ConfigError(
                "hosts do not agree:\n"
                + "\n".join(differing[:MOST_SHOWN])
                + (f"\nand {counted(more, 'other')}" if more > 0 else "")
                + "\nuse one environment, recipe and set of files on all of them"
            )


def differences_between(views: Sequence[tuple[str, View]]) -> list[str]:
    """What differs, with who sees what; what most see comes first.

    Args:
        views: Of each rank, or of one on each host, with its host.
    """
    names = sorted({name for _, view in views for name in view})
    found = []
    for name in names:
        hosts_of: dict[str, list[str]] = {}
        for host, view in views:
            hosts_of.setdefault(view.get(name, "not there"), []).append(host)
        if len(hosts_of) > 1:
            by_number = sorted(hosts_of.items(), key=lambda item: -len(item[1]))
            found.append(f"{name}: " + "; ".join(f"{value} on {_some(hosts)}" for value, hosts in by_number))
    return found


def _some(hosts: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(hosts))
    return ", ".join(distinct[:3]) + (f" and {counted(len(distinct) - 3, 'other')}" if len(distinct) > 3 else "")
