"""A YAML file as a tree of values, and what is wrong with one, with its line."""

from __future__ import annotations

import io
import re
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError
from yaml.error import MarkedYAMLError

from ted_ds.config.shipped import RECIPES, shipped
from ted_ds.errors import ConfigError

DUPLICATE = "found duplicate key"


def read_yaml(path: Path) -> tuple[DictConfig, list[str]]:
    """The mapping in a recipe file, and a message for each key that is given twice, of which the first counts.

    Raises:
        ConfigError: There is no such file, or no mapping in it.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the file")
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe file; the recipes that ship are in {shipped(RECIPES)}")
    repeated: list[str] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            tree = OmegaConf.load(io.StringIO(text))
        except MarkedYAMLError as error:
            if not (error.problem or "").startswith(DUPLICATE):
                raise
            text, repeated = without_duplicates(text)
            tree = OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except OSError:  # a bare number or text: OmegaConf's own choice of error
        tree = None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_what_is_wrong(path, error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
    return tree, repeated


def without_duplicates(text: str) -> tuple[str, list[str]]:
    """YAML with the first of each two keys that are the same, and a message for each of the others.

    Raises:
        YAMLError: It is no YAML.
    """
    root, repeated, seen = yaml.compose(text, Loader=yaml.SafeLoader), [], set()

    def drop(node: yaml.Node | None, place: str) -> None:
        if node is None or id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                drop(child, f"{place}[{index}]")
        if isinstance(node, yaml.MappingNode):
            kept: dict[object, tuple[yaml.Node, yaml.Node]] = {}
            for key, child in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
                own = f"{place}.{key.value}".lstrip(".")
                if name in kept:
                    first = kept[name][0].start_mark.line + 1
                    repeated.append(
                        f"line {key.start_mark.line + 1}: {own}: given twice, first in line {first}; keep one"
                    )
                else:
                    kept[name] = (key, child)
                    drop(child, own)
            node.value = [*kept.values()]

    drop(root, "")
    return yaml.serialize(root), repeated


def _what_is_wrong(path: Path, error: Exception) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return str(error).strip().splitlines()[0]
    mark, problem = error.problem_mark, error.problem or ""
    place = f"line {mark.line + 1}, column {mark.column + 1}: "
    line = path.read_text(encoding="utf-8").splitlines()[mark.line : mark.line + 1]
    if line and "\t" in line[0][: mark.column + 1]:
        return f"{place}a tab; indent with spaces"
    if "mapping values are not allowed" in problem:
        return f"{place}a second ': ' in one line; put the value into quotes, or begin a new line"
    if "another document" in problem:
        return f"{place}a second document begins (---); a recipe is one"
    begun = f" ({error.context}, which begins in line {error.context_mark.line + 1})" if error.context_mark else ""
    return f"{place}{problem}{begun}"


def unresolved(error: OmegaConfBaseException) -> str:
    """Where a ``${...}`` cannot be resolved, and why."""
    key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
    first = str(error).strip().splitlines()[0]
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'(.*)'", first)
        return f"{key}${{{missing[1] if missing else ''}}}: the recipe has no such key"
    if "Recursive interpolation" in first:
        return f"{key}its ${{...}} leads back to itself"
    if isinstance(error, InterpolationResolutionError):
        variable = re.search(r"Environment variable '(.*)' not found", first)
        if variable:
            name = variable[1]
            return f"{key}${{oc.env:{name}}}: ${name} is not set; set it, or write ${{oc.env:{name},default}}"
    return f"{key}{first}"
