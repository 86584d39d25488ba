"""What is known of a model before anything is fetched: by its files, or by a ``config.json`` beside the recipe.

Facts of models and data sets of the hub may stand in a folder ``hub`` beside a recipe or one that it extends, or in the
folder above, in folders that are called as the hub's own cache calls them: ``hub/models--ORG--NAME/config.json`` is a
model's config, ``hub/datasets--ORG--NAME/README.md`` a data set's card. Nothing is trained by them: a run fetches what
they are of.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ted_ds.config.data import Source
from ted_ds.data.dataset_card import SplitSize, size_of_split
from ted_ds.data.sources import HUB_NAME, names_hub
from ted_ds.errors import CheckpointError, ConfigError, DataError
from ted_ds.models.config_facts import read_config_facts
from ted_ds.models.files import ModelFacts, read_model_facts
from ted_ds.models.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, no_folder

FACTS = "hub"
"""The folder beside a recipe."""
ENTRIES = {
    "model_type": "model_type",
    "num_blocks": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
}
"""What facts of one model agree in, and transformers' names for it."""


@dataclass(frozen=True)
class KnownModel:
    """What is known of a model."""

    facts: ModelFacts | None = None
    folder: Path | None = None
    """With all its files; None where these are elsewhere."""
    config: Path | None = None
    """The ``config.json`` that is all there is."""
    doubt: str | None = None
    """Why it may be wrong."""

    @property
    def place(self) -> Path | None:
        """The folder with whatever files there are."""
        return self.config.parent if self.config is not None else self.folder

    @property
    def origin(self) -> str:
        """Where facts are from, in words, unless from all its files."""
        return "" if self.config is None else f", by {self.config} alone: its weights and tokenizer were not looked at"


def local_model(path: str) -> Path | None:
    """The folder a model path names; None for a hub name.

    Raises:
        ConfigError: It is neither.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_NAME.match(path):
        raise ConfigError(f"{path}: {no_folder(folder)}")
    return None


def by_local_files(path: str) -> KnownModel:
    """A local folder's; nothing of a hub name, which a run fetches first.

    Raises:
        TedError: There is no such folder, or something is wrong in it.
    """
    folder = local_model(path)
    return KnownModel() if folder is None else KnownModel(read_model_facts(folder), folder)


@dataclass(frozen=True)
class HubLookup:
    """Also what the hub's cache and the folders beside a recipe know of hub names; nothing is fetched."""

    recipes: Sequence[str | Path]
    """Files of the recipe: itself, the one it extends, and so on."""

    def __call__(self, path: str) -> KnownModel:
        """What is known of a model.

        Raises:
            TedError: There is no such folder, or something is wrong in what there is.
        """
        if local_model(path) is not None:
            return by_local_files(path)
        given, cached = self.facts_of(path, kind="model"), _in_cache(path)
        if cached is None:
            return KnownModel() if given is None else _by_config(given)
        is_whole = any((cached / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))
        known = KnownModel(read_model_facts(cached), cached) if is_whole else _by_config(cached)
        if given is None:
            return known
        return KnownModel(known.facts, known.folder, known.config, _contradiction(_by_config(given), known))

    def size_of(self, source: Source, place: str) -> SplitSize | None:
        """How large a source is by the card of its data set; None where it is none of the hub's, or has no card here.

        Raises:
            DataError: The card says nothing of it; after its ``place`` in the recipe.
        """
        folder = self.facts_of(source.path, kind="dataset") if names_hub(source) else None
        try:
            return None if folder is None else size_of_split(folder, source.name, source.split)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def facts_of(self, name: str, *, kind: str) -> Path | None:
        """The folder with the facts of a ``model`` or ``dataset`` of the hub, the nearest recipe's first."""
        within = Path(FACTS) / f"{kind}s--{name.replace('/', '--')}"
        beside = (Path(recipe).parent for recipe in self.recipes)
        folders = (place / within for folder in beside for place in (folder, folder / ".."))
        return next((Path(os.path.normpath(folder)) for folder in folders if folder.is_dir()), None)


def _by_config(folder: Path) -> KnownModel:
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} here; put the model's there, or remove the folder")
    return KnownModel(read_config_facts(folder), config=folder / CONFIG_FILE)


def _in_cache(name: str) -> Path | None:
    """The folder of a hub model in the hub's cache; None where its config is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG_FILE)
    return Path(found).parent if isinstance(found, str) else None


def _contradiction(given: KnownModel, cached: KnownModel) -> str | None:
    """What differs between the facts beside the recipe and the model in the cache, which counts."""
    assert given.facts is not None
    assert cached.facts is not None
    for name, entry in ENTRIES.items():
        here, there = getattr(given.facts, name), getattr(cached.facts, name)
        if here != there:
            return (
                f"{given.config} says {entry} {here}, the model in the hub's cache has {there}, which "
                "counts; correct the file, or remove it"
            )
    return None
