"""A YAML recipe and dotted overrides become a validated recipe, or one message with every mistake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ted_ds.config.defaults import fill_defaults, fill_name
from ted_ds.config.draft import Draft, read_draft
from ted_ds.config.extends import COMMAND_LINE, OwnOverride
from ted_ds.config.extends import KEY as EXTENDS
from ted_ds.config.given import AnyRecipe, read_given
from ted_ds.config.glue import fill_from_glue
from ted_ds.config.relative_paths import follow_recipe
from ted_ds.config.schema import Recipe
from ted_ds.config.wording import in_words
from ted_ds.config.yaml_file import unresolved, without_duplicates
from ted_ds.errors import ConfigError, counted, raise_all

CONSTANTS = "constants"
"""The key under which a recipe may name values, for ``${constants.NAME}`` to stand for."""
NO_SUCH_KEY = re.compile(r"\$\{([\w.\[\]]+)\}: the recipe has no such key")
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
        ConfigError: The file cannot be read as a mapping.
    """
    tree, chain = read_given(recipe)
    draft = Draft(chain=chain, beside=[*chain.repeated])
    values = _values(tree, draft, overrides)
    filled = fill_defaults(values, num_ranks=num_ranks, can_solve=can_solve)
    draft.reasons |= {place: why for place, why in filled.items() if why}
    return read_draft(values, draft, filled)


def draft_mistakes(draft: Draft) -> list[str]:
    """Every key and value of a recipe that is wrong, and every override."""
    # of a value that may be of several types, each says the same
    return [*draft.beside, *dict.fromkeys(in_words(draft.errors)), *draft.broken_rules]


def _values(tree: DictConfig, draft: Draft, overrides: Sequence[str]) -> Any:
    """A recipe's values with overrides; what is wrong in these, or cannot be resolved, is left out and noted."""
    chain = draft.chain
    for override in overrides:
        try:
            _apply(tree, override)
        except ConfigError as error:
            where = "" if isinstance(override, OwnOverride) else f"{COMMAND_LINE}: "
            draft.leave_out(override.partition("=")[0], f"{where}{str(override)!r}: {error}")
        else:
            chain.override(override.partition("=")[0], override)
    given: Any = OmegaConf.to_container(tree, resolve=False)
    draft.reasons = fill_name(given, chain.files[0])
    for key in draft.reasons:  # before others refer to them
        tree[key] = given[key]
    data = _resolved(tree, draft)
    constants = data.pop(CONSTANTS, None) if isinstance(data, dict) else None
    if not isinstance(constants, dict | None):
        what = f"{CONSTANTS}: {constants!r}: use a mapping of names of your own to values, which ${{{CONSTANTS}.NAME}}"
        draft.beside.append(f"{what} stands for anywhere in the recipe")
    follow_recipe(data, chain)
    try:
        draft.beside += fill_from_glue(data)
    except ConfigError as error:  # what it stands for is not known
        draft.leave_out("data.glue", str(error))
        del data["data"]["glue"]
        draft.leave_out("task")
        if data["data"].get("train") is None:
            draft.leave_out("data.train")
    return data


def _resolved(tree: DictConfig, draft: Draft) -> Any:
    """A recipe's values without ``${...}``; those that lead nowhere are left out and noted."""
    while True:
        try:
            return OmegaConf.to_container(tree, resolve=True)
        except OmegaConfBaseException as error:
            place = str(getattr(error, "full_key", None) or "")
            node = OmegaConf.select(tree, place, throw_on_resolution_failure=False) if place else None
            if not place or (node is None and not _take_out(tree, place)):
                raise ConfigError(draft.chain.place(unresolved(error))) from error
            why = unresolved(error)
            missing = NO_SUCH_KEY.search(why)
            draft.leave_out(place, why if missing is None or not draft.has_left_out(missing[1]) else None)


def _take_out(tree: DictConfig, place: str) -> bool:
    """Take what stands at a place out of a recipe; returns whether something did."""
    holder: Any = tree
    *parts, last = [int(one) if one.isdecimal() else one for one in re.findall(r"[^.\[\]]+", place)]
    for part in parts:
        holder = holder._get_node(part)
    if holder is None or holder._get_node(last) is None:
        return False
    if isinstance(holder, ListConfig):
        holder[last] = None  # others keep their places
    else:
        del holder[last]
    return True


def _apply(tree: DictConfig, override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not KEY.fullmatch(key):
        raise ConfigError("an override has the form a.b=value or a.b[0].c=value")
    if key == EXTENDS:
        raise ConfigError("what a recipe extends stands in its file; write it there")
    _refuse_entry_that_is_not_there(tree, key)
    try:
        OmegaConf.update(tree, key, _parse_value(key, value), merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise ConfigError(_first_line(error)) from error


def _refuse_entry_that_is_not_there(tree: DictConfig, key: str) -> None:
    for index in re.finditer(r"\[(\d+)\]", key):
        owner = key[: index.start()]
        entries = OmegaConf.select(tree, owner, throw_on_resolution_failure=False)
        if isinstance(entries, ListConfig) and int(index[1]) >= len(entries):
            has = counted(len(entries), "entry", "entries") + ", numbered from 0"
            raise ConfigError(f"{owner} has {has}; write the whole list to add one")


def _parse_value(key: str, text: str) -> Any:
    content = f"value: {text}"
    try:
        repeated = without_duplicates(content)[1]
        if repeated:
            places = ", ".join(key + one.split(": ")[1].removeprefix("value") for one in repeated)
            raise ConfigError(f"{places}: given twice; keep one")
        return OmegaConf.to_container(OmegaConf.create(content), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError("not readable as a YAML value") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
