"""A YAML recipe and dotted overrides become a validated recipe, or one message with every mistake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ted_ds.config.defaults import Reasons, fill_defaults, fill_name
from ted_ds.config.draft import Draft, read_draft
from ted_ds.config.extends import KEY as EXTENDS
from ted_ds.config.extends import Chain
from ted_ds.config.given import AnyRecipe, read_given
from ted_ds.config.glue import fill_from_glue
from ted_ds.config.relative_paths import follow_recipe
from ted_ds.config.schema import Recipe
from ted_ds.config.wording import in_words
from ted_ds.config.yaml_file import unresolved, without_duplicates
from ted_ds.errors import ConfigError, raise_all

CONSTANTS = "constants"
"""The key under which a recipe may name values, for ``${constants.NAME}`` to stand for."""
KEY = re.compile(r"\w+(\.\w+|\[\d+\])*")


def load_recipe(recipe: AnyRecipe, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and what it extends, apply ``a.b[0].c=value`` overrides, resolve ``${...}`` and validate.

    Of two overrides of one key the later counts, as on any command line.

    Raises:
        ConfigError: The file cannot be read, or any key or value is wrong; lists all of them.
    """
    draft = load_draft(recipe, overrides)
    raise_all([draft.chain.place(message) for message in draft_mistakes(draft)])
    assert draft.recipe is not None, "without a mistake all of it is understood"
    return draft.recipe


def load_draft(
    recipe: AnyRecipe, overrides: Sequence[str] = (), *, num_ranks: int = 1, can_solve: bool = True
) -> Draft:
    """The same, as far as it can be understood, for checks that do not depend on what is wrong in it.

    Args:
        recipe: Its file, or what stands for one.
        overrides: Changes to it.
        num_ranks: Ranks it is for; see :func:`ted_ds.config.defaults.fill_defaults`.
        can_solve: As there.

    Raises:
        ConfigError: The file cannot be read as a mapping, or an override has no place in it.
    """
    tree, chain = read_given(recipe)
    values, reasons, beside_glue = _values(tree, chain, overrides)
    reasons |= fill_defaults(values, num_ranks=num_ranks, can_solve=can_solve)
    draft = read_draft(values)
    draft.given_twice = [*chain.repeated, *beside_glue]
    draft.chain, draft.reasons = chain, reasons
    return draft


def draft_mistakes(draft: Draft) -> list[str]:
    """Every key and value of a recipe that is wrong."""
    return [*draft.given_twice, *in_words(draft.errors), *draft.broken_rules]


def _values(tree: DictConfig, chain: Chain, overrides: Sequence[str]) -> tuple[Any, Reasons, list[str]]:
    """A recipe's values with overrides, why its name is what it is, and what is wrong beside ``data.glue``."""
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not KEY.fullmatch(key):
            raise ConfigError(f"command line: {override!r}: an override has the form a.b=value or a.b[0].c=value")
        if key == EXTENDS:
            raise ConfigError(f"command line: {override!r}: what a recipe extends stands in its file; write it there")
        _refuse_entry_that_is_not_there(tree, key, override)
        try:
            OmegaConf.update(tree, key, _parse_value(override, key, value), merge=False, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"command line: {override!r}: {_first_line(error)}") from error
        chain.override(key)
    given: Any = OmegaConf.to_container(tree, resolve=False)
    reasons = fill_name(given, chain.files[0])
    for key in reasons:  # before others refer to them
        tree[key] = given[key]
    try:
        data = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(chain.place(unresolved(error))) from error
    constants = data.pop(CONSTANTS, None) if isinstance(data, dict) else None
    if not isinstance(constants, dict | None):
        what = f"{CONSTANTS}: {constants!r}: use a mapping of names of your own to values, which ${{{CONSTANTS}.NAME}}"
        raise ConfigError(chain.place(f"{what} stands for anywhere in the recipe"))
    follow_recipe(data, chain)
    try:
        return data, reasons, [*fill_from_glue(data)]
    except ConfigError as error:
        raise ConfigError(chain.place(str(error))) from error


def _refuse_entry_that_is_not_there(tree: DictConfig, key: str, override: str) -> None:
    for index in re.finditer(r"\[(\d+)\]", key):
        owner = key[: index.start()]
        entries = OmegaConf.select(tree, owner, throw_on_resolution_failure=False)
        if isinstance(entries, ListConfig) and int(index[1]) >= len(entries):
            has = {0: "no entries", 1: "1 entry"}.get(len(entries), f"{len(entries)} entries") + ", numbered from 0"
            raise ConfigError(f"command line: {override!r}: {owner} has {has}; write the whole list to add one")


def _parse_value(override: str, key: str, text: str) -> Any:
    content = f"value: {text}"
    try:
        repeated = without_duplicates(content)[1]
        if repeated:
            places = ", ".join(key + one.split(": ")[1].removeprefix("value") for one in repeated)
            raise ConfigError(f"command line: {override!r}: {places}: given twice; keep one")
        return OmegaConf.to_container(OmegaConf.create(content), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"command line: {override!r}: not readable as a YAML value") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
