"""A recipe as it is given: the path of its file, or, in Python, a mapping with its keys or the recipe itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ted_ds.config.extends import KEY as EXTENDS
from ted_ds.config.extends import Chain, read_chain
from ted_ds.config.schema import Recipe
from ted_ds.config.section import Section
from ted_ds.errors import ConfigError

AnyRecipe = str | Path | Mapping[str, Any] | Recipe
IN_PYTHON = Path("recipe")
"""What stands in messages for the file, where there is none."""


def source_of(recipe: AnyRecipe) -> str:
    """What messages call a recipe: its file."""
    return str(recipe if isinstance(recipe, str | Path) else IN_PYTHON)


def read_given(recipe: AnyRecipe) -> tuple[DictConfig, Chain]:
    """The tree of a recipe's values, and the files it is from.

    Raises:
        ConfigError: There is no such file, or no recipe in it; or what is given is none.
    """
    if isinstance(recipe, str | Path):
        return read_chain(Path(recipe))
    if not isinstance(recipe, Mapping | Recipe):
        raise ConfigError(f"{IN_PYTHON}: {recipe!r}: use the path of a recipe, a mapping with its keys, or a Recipe")
    values = _plain(recipe)
    if EXTENDS in values:
        raise ConfigError(
            f"{IN_PYTHON}: {EXTENDS}: {values[EXTENDS]!r}: only the file of a recipe extends another; give the path of "
            "that file, and what is to change as overrides"
        )
    try:
        return OmegaConf.create(values), Chain([IN_PYTHON])
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{IN_PYTHON}: {str(error).strip().splitlines()[0]}") from error


def _plain(value: Any) -> Any:
    """What a YAML file would say: paths as text, sections as mappings of what they were given."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    return value
