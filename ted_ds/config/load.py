"""A YAML recipe and dotted overrides become a validated recipe, or one message with every mistake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from ted_ds.config.schema import Recipe
from ted_ds.config.wording import in_words
from ted_ds.config.yaml_file import read_yaml, unresolved
from ted_ds.errors import ConfigError, raise_all

KEY = re.compile(r"\w+(\.\w+|\[\d+\])*")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read ``path``, apply ``a.b[0].c=value`` overrides, resolve ``${...}`` and validate.

    Of two overrides of one key the later counts, as on any command line.

    Raises:
        ConfigError: The file cannot be read, or any key or value is wrong; lists all of them.
    """
    path = Path(path)
    tree = read_yaml(path)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not KEY.fullmatch(key):
            raise ConfigError(f"command line: {override!r}: an override has the form a.b=value or a.b[0].c=value")
        try:
            OmegaConf.update(tree, key, _parse_value(override, value), merge=False, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"command line: {override!r}: {_first_line(error)}") from error
    try:
        data = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {unresolved(error)}") from error
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise_all([f"{path}: {message}" for message in in_words(error)])
        raise  # unreachable: a ValidationError has at least one message


def _parse_value(override: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"command line: {override!r}: not readable as a YAML value") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
