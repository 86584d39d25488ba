"""A YAML recipe and dotted overrides become a validated recipe, or one message with every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from ted_ds.config.schema import Recipe
from ted_ds.config.tasks import Task
from ted_ds.errors import ConfigError, raise_all

TASK_KINDS = {kind for task in get_args(Task) for kind in get_args(task.model_fields["kind"].annotation)}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read ``path``, apply ``a.b[0].c=value`` overrides, resolve ``${...}`` and validate.

    Raises:
        ConfigError: The file cannot be read, or any key or value is wrong; lists all of them.
    """
    path = Path(path)
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
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise_all([f"{path}: {message}" for message in _messages(error)])
        raise  # unreachable: a ValidationError has at least one message


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


def _messages(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        # pydantic puts the tag of a discriminated union into the path; the user never wrote it as a key
        location = [part for part in item["loc"] if part not in TASK_KINDS]
        where = _dotted(location)
        if item["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_nearest(item['loc'])}"
        elif item["type"] == "missing":
            yield f"{where}: this key is required"
        else:
            rule = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict | BaseModel) else f"{item['input']!r}: "
            yield f"{where}: {given}{rule}" if where else f"{given}{rule}"


def _dotted(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _nearest(location: Sequence[int | str]) -> str:
    names = {name for model in _models_at(Recipe, list(location[:-1])) for name in model.model_fields}
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(names))}"


def _models_at(annotation: Any, path: list[int | str]) -> list[type[BaseModel]]:
    """The section classes that ``path`` can lead to, starting from a type annotation.

    A union by ``kind`` puts the kind into the path.
    """
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        inner = path[1:] if path and isinstance(path[0], int) else path
        return [model for arg in get_args(annotation) for model in _models_at(arg, inner)]
    kinds = get_args(annotation.model_fields["kind"].annotation) if "kind" in annotation.model_fields else ()
    if len(kinds) == 1 and path:
        if path[0] != kinds[0]:
            return []
        path = path[1:]
    if not path:
        return [annotation]
    field = annotation.model_fields.get(str(path[0]))
    return _models_at(field.annotation, path[1:]) if field else []
