"""The Python interface: a run from a script, under a launcher or not, or from a notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ted_ds.assembly.own import Own, terms_named
from ted_ds.config.environment import refuse_unknown_words
from ted_ds.config.given import AnyRecipe
from ted_ds.errors import ConfigError
from ted_ds.objectives.own_term import OwnTerm
from ted_ds.phases.callbacks import Callback
from ted_ds.planning.phase import phases_of_verb
from ted_ds.runtime.preemption import StopRequests
from ted_ds.runtime.visit import visiting
from ted_ds.tasks.own_scorer import OwnScorer
from ted_ds.verbs.given_data import with_rows
from ted_ds.verbs.result import Result, read_result
from ted_ds.verbs.run import Order, run_order

Verb = Literal["run", "finetune", "filters", "distill", "evaluate", "export", "lm_eval"]


def distill(
    recipe: AnyRecipe,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    callbacks: Sequence[Callback] = (),
    train_data: Iterable[Mapping[str, Any]] | None = None,
    terms: Sequence[OwnTerm | str] = (),
    scorer: OwnScorer | None = None,
    verb: Verb = "run",
) -> Result:
    """Do what ``ted-ds VERB RECIPE`` does, on the ranks that a launcher started, or in this process alone.

    Every rank calls it, with the same arguments. Called again, it goes on where it was left, and skips what is
    complete. It leaves the process as it found it: signals, variables of the environment, random numbers, group of
    ranks.

    Args:
        recipe: The path of a recipe, a mapping with its keys, or a :class:`~ted_ds.config.schema.Recipe`. Relative
            paths in the last two are from the current folder.
        overrides: Changes to it, as ``["a.b=value"]`` or ``{"a.b": value}``.
        callbacks: What hears of the run as it goes, and may stop it.
        train_data: Rows in the place of ``data.train``: a ``datasets.Dataset``, or any iterable of mappings of column
            to value. They are written into ``given/`` of ``output_dir``, and the run goes on with the same alone. Rank
            0's count.
        terms: Terms of your own in the loss of Stage II, or names of those of installed packages.
        scorer: A metric of your own, by which models are then compared.
        verb: All phases, or those of one verb of the command line.

    Returns:
        What the run has come to; the same on every rank.

    Raises:
        StoppedOnRequest: A signal (Ctrl-C, a notebook's interrupt), a callback or ``stop_after_minutes`` asked for it.
            What was reached is saved; the same call goes on from there.
        TedError: What the command line says with exit code 2, in the same words, on every rank.
        RankLostError: Another rank died or hangs, or this one's GPU failed.
    """
    with visiting():
        refuse_unknown_words(os.environ)
        if verb not in get_args(Verb):
            raise ConfigError(f"verb: {verb!r}: use one of {', '.join(get_args(Verb))}")
        with with_rows(recipe, in_words(overrides), train_data) as changes:
            order = Order(recipe, changes, phases_of_verb(verb), callbacks, Own(terms_named(terms), scorer))
            return run_order(order, StopRequests(owns_process=False), read_result)


def in_words(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Overrides as the command line has them.

    Raises:
        ConfigError: A value is none of a recipe.
    """
    if not isinstance(overrides, Mapping):
        return [*overrides]
    return [f"{key}={_text_of(key, value)}" for key, value in overrides.items()]


def _text_of(key: str, value: Any) -> str:
    try:
        return json.dumps(value, default=lambda one: str(one) if isinstance(one, Path) else one)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"overrides: {key}: {value!r} is no value of a recipe; use text, numbers, lists and mappings"
        ) from error
