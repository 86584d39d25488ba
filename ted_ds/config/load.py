"""A YAML recipe and dotted overrides become a validated recipe, or one message with every mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from yaml import YAMLError

from ted_ds.config.draft import Draft, closest_key, dotted, read_draft, sections_at
from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError, raise_all


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read ``path``, apply ``a.b[0].c=value`` overrides, resolve ``${...}`` and validate.

    Raises:
        ConfigError: The file cannot be read, or any key or value is wrong; lists all of them.
    """
    draft = load_draft(path, overrides)
    raise_all([f"{path}: {message}" for message in draft_mistakes(draft)])
    assert draft.recipe is not None, "without a mistake all of it is understood"
    return draft.recipe


def load_draft(path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """The same, as far as it can be understood, for checks that do not depend on what is wrong in it.

    Raises:
        ConfigError: The file cannot be read as a mapping, or an override has no place in it.
    """
    return read_draft(_read_values(Path(path), overrides))


def draft_mistakes(draft: Draft) -> list[str]:
    """Every key and value of a recipe that is wrong."""
    return [*_messages(draft.errors), *draft.broken_rules]


def _read_values(path: Path, overrides: Sequence[str]) -> Any:
    tree = _read(path)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"command line: {override!r}: an override has the form a.b=value")
        try:
            OmegaConf.update(tree, key, _parse_value(override, value), merge=False, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"command line: {override!r}: {_first_line(error)}") from error
    try:
        data = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    return data


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file; the recipes that ship are in ds_configs/recipes")
    try:
        tree = OmegaConf.load(path)
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except OSError:  # a bare number or text: OmegaConf's own choice of error
        tree = None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
    return tree


def _parse_value(override: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"command line: {override!r}: not readable as a YAML value") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _messages(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    for item in errors:
        where = dotted(item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_nearest(item['loc'])}"
        elif item["type"] == "missing":
            yield f"{where}: this key is required"
        else:
            rule = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict | BaseModel) else f"{item['input']!r}: "
            yield f"{where}: {given}{rule}" if where else f"{given}{rule}"


def _nearest(location: Sequence[int | str]) -> str:
    close = closest_key(location)
    if close is not None:
        return f"; did you mean {close!r}?"
    names = {name for section in sections_at(Recipe, location[:-1]) for name in section.model_fields}
    return f"; known here: {', '.join(sorted(names))}"
