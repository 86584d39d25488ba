"""The recipe's ``study`` section: which ways to train are compared, over which seeds, and at equal what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ted_ds.config.methods import METHODS
from ted_ds.config.nearest import nearest
from ted_ds.config.section import Section, rule
from ted_ds.errors import counted

METHOD_KEY = "distill.method"
ARM_NAME = re.compile(r"\w[\w.-]*")
OVERRIDE_KEY = re.compile(r"\w+(\.\w+|\[\d+\])*")
OWN_KEYS = {
    "study": "an arm is no study of its own",
    "extends": "what a recipe extends stands in its file",
    "name": "a run is called by its arm and seed",
    "output_dir": "each run has a folder in that of the study",
    "seed": "all arms have the seeds of study.seeds",
    "shared_phases": "runs of a study share phases in its folder",
    "task": "arms are scored on one task",
    "evaluation": "arms are scored alike",
    "data.glue": "arms are scored on the same examples",
    "data.validation": "arms are scored on the same examples",
    "data.evaluation": "arms are scored on the same examples",
    "data.heldout_fraction": "arms are scored on the same examples",
    "data.test": "arms are scored on the same examples",
    "data.apart": "arms are scored on the same examples",
}
"""Keys that no arm may override, nor what is below them, and why."""

NOT_SEARCHED = {
    "teacher": "all arms have the teacher that their recipe says",
    "data": "trials are scored on the same examples",
    "distill.max_steps": "all trials take the steps of their arm",
    "distill.epochs": "all trials take the steps of their arm",
    METHOD_KEY: "a method is an arm",
}
"""Keys that no grid may be over, nor what is below them, and why."""

Seed = Annotated[int, Field(ge=0)]


class Search(Section):
    """Settings that are chosen for each arm by itself, on held-out data, before ``data.test`` is looked at."""

    trials: int = Field(gt=1)
    """How many settings of each arm are tried: its whole grid, or so many of it drawn by the study's first seed."""
    grids: dict[str, dict[str, list[Any]]]
    """Of each arm by its name, keys of the recipe and the values to try of each."""
    halvings: int = Field(default=0, ge=0)
    """Successive halving: all trials of an arm begin with the steps of Stage II halved so often, and the better half is
    trained anew with twice as many, until it has all. 0: every trial takes all steps."""

    @rule
    def _halves_are_left(self) -> Iterator[str]:
        if self.trials >> self.halvings < 1:
            yield (
                f"halvings: {self.halvings}: {counted(self.trials, 'trial')} cannot be halved so often; use fewer, or "
                "more trials"
            )

    @rule
    def _grids_are_of_what_a_student_learns_by(self) -> Iterator[str]:
        for arm, grid in self.grids.items():
            for key, values in grid.items():
                place = f"grids.{arm}"
                yield from (f"{place}: {line}" for line in _key_mistakes(key))
                for own, reason in NOT_SEARCHED.items():
                    if key == own or key.startswith(f"{own}."):
                        yield f"{place}: {key}: {reason}; remove it"
                if not values or any(one in values[:number] for number, one in enumerate(values)):
                    yield f"{place}: {key}: {values}: give one value or more, each once"
            size = math.prod(len(values) for values in grid.values())
            if size < self.trials:
                yield (
                    f"grids.{arm}: has {counted(size, 'setting')}; all arms are given "
                    f"{counted(self.trials, 'trial')}, so give more values"
                )


class Study(Section):
    """Several ways to train are compared from one student, over the same seeds and on the same examples."""

    arms: dict[str, Any] | None = None
    """The ways, by name: each with the keys that it changes in the recipe, written in full (``student.heal``). ``sft``,
    ``kd``, ``lwd`` and ``ted`` need none: they are ``distill.method`` of that name. Unset: these, ``ted`` where the
    recipe has filters. All are compared with ``sft``, or else with the first."""
    only: list[str] | None = None
    """Names of those arms that are compared this time, as if there were no others; unset: all."""
    seeds: int | list[Seed] = 3
    """How many, from the recipe's ``seed`` on; or which. Each arm is trained once with each."""
    equal: Literal["tokens", "compute"] = "tokens"
    """What arms have as much of: steps as the recipe says (``tokens``), or operations by the plan (``compute``): those
    that take fewer, Stage I, healing and the teacher's passes counted, get more steps of Stage II."""
    search: Search | None = None
    """Unset: arms have the settings that the recipe and ``arms`` say."""
    ranks: int = Field(default=1, gt=0)
    """Of each run on this machine, started by the deepspeed launcher; 1: a process without it."""
    at_once: int = Field(default=1, gt=0)
    """How many runs go on side by side."""

    def changes_of(self, arm: str) -> dict[str, Any]:
        """The keys that an arm changes, with their values."""
        own = (self.arms or {}).get(arm) or {}
        return {**({METHOD_KEY: arm} if arm in METHODS else {}), **own}

    @rule
    def _arms_are_mappings_of_keys(self) -> Iterator[str]:
        for name, changes in (self.arms or {}).items():
            place = f"arms.{name}"
            if not ARM_NAME.fullmatch(name):
                yield f"{place}: use letters, digits, '_', '.' and '-', the first no sign; its folder is called by it"
            elif changes is None and name not in METHODS:
                meant = nearest(name, METHODS)
                hint = f"did you mean {meant}? Else give" if meant else "give"
                yield (
                    f"{place}: only {', '.join(METHODS)} are known by their names; {hint} the keys that it changes, or "
                    "{} for the recipe as it is"
                )
            elif not isinstance(changes, dict | None):
                yield f"{place}: {changes!r}: use a mapping of keys of the recipe, such as student.heal, to values"
            elif name in METHODS and (method := (changes or {}).get(METHOD_KEY, name)) != name:
                yield f"{place}: {METHOD_KEY}: {method}: use {name} in an arm so called, or another name"
            for key in changes if isinstance(changes, dict) else ():
                yield from (f"{place}: {line}" for line in _key_mistakes(key))

    @rule
    def _arms_are_several(self) -> Iterator[str]:
        if self.arms is not None and len(self.arms) < 2:
            yield f"arms: {', '.join(self.arms) or 'none'}: a study compares two or more; give them"

    @rule
    def _chosen_arms_are_several(self) -> Iterator[str]:
        if self.only is not None and not 2 <= len(self.only) == len({*self.only}):
            yield f"only: {', '.join(self.only) or 'none'}: a study compares two arms or more; name them, each once"

    @rule
    def _seeds_are_distinct(self) -> Iterator[str]:
        if isinstance(self.seeds, list) and (not self.seeds or len({*self.seeds}) < len(self.seeds)):
            yield f"seeds: {self.seeds}: list one or more, each once; or say how many"
        if isinstance(self.seeds, int) and self.seeds < 1:
            yield f"seeds: {self.seeds}: use 1 or more; differences between seeds are seen from 2 on"


def _key_mistakes(key: Any) -> Iterator[str]:
    if not isinstance(key, str) or not OVERRIDE_KEY.fullmatch(key):
        yield f"{key!r}: a key is written in full, a.b or a.b[0].c"
        return
    for own, reason in OWN_KEYS.items():
        if key == own or key.startswith((f"{own}.", f"{own}[")):
            yield f"{key}: {reason}; remove it"
    within = next((own for own in (METHOD_KEY, *OWN_KEYS) if own.startswith(f"{key}.")), None)
    if within is not None:
        yield (
            f"{key}: would take the place of all that is in it, {within} with it; write its keys one by one, as "
            f"{key}.KEY"
        )
