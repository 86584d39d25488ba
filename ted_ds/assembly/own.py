"""What a run has of its user's own code, given in Python: a recipe names data and never code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ted_ds.config.schema import Recipe
from ted_ds.errors import ConfigError
from ted_ds.models.plug_ins import TERMS, load_plug_in, names_of_plug_ins
from ted_ds.objectives.own_term import OwnTerm, identities, own_mistakes
from ted_ds.tasks.own_scorer import OwnScorer, own_scorer_mistakes


@dataclass(frozen=True)
class Own:
    """The user's own parts of a run, the same on every rank."""

    terms: Sequence[OwnTerm] = ()
    """Of Stage II."""
    scorer: OwnScorer | None = None
    """Of held-out data, beside the task's."""

    def mistakes(self, recipe: Recipe, *, two_tokenizers: bool) -> Iterator[str]:
        """What of them cannot work, or does not go with the recipe."""
        yield from own_mistakes(self.terms)
        yield from own_scorer_mistakes(self.scorer)
        if not self.terms:
            return
        if not recipe.distill.needs.states:
            yield (
                f"terms: distill.method: {recipe.distill.method} compares no layers, of which terms are made; use "
                "lwd or ted, or remove them"
            )
        if recipe.teacher.cache is not None:
            yield "terms: teacher.cache keeps no states that terms could be made of; remove one of the two"
        if recipe.distill.balance is not None:
            yield (
                f"terms: distill.balance: {recipe.distill.balance} is of the terms of ted_ds alone; remove one of the "
                "two"
            )
        if two_tokenizers:
            yield "terms: tokens of two tokenizers do not pair; let the student read by the teacher's, or remove them"

    def of_stage_two(self) -> Mapping[str, Any]:
        """What of them decides the result of Stage II."""
        return {"own_terms": identities(self.terms)} if self.terms else {}

    def of_scores(self) -> Mapping[str, Any]:
        """What of them decides how models are scored, and which is the best."""
        return {} if self.scorer is None else {"own_scorer": self.scorer.identity()}

    def deciding_values(self) -> Mapping[str, Any]:
        """All that ranks must have in common of them."""
        return {**self.of_stage_two(), **self.of_scores()}

    @property
    def terms_in_words(self) -> str | None:
        """Of the screen; None without any."""
        if not self.terms:
            return None
        return ", ".join(f"{one.name} (weight {one.weight:g}, per {one.per})" for one in self.terms)


NOTHING_OWN = Own()


def terms_named(terms: Sequence[OwnTerm | str]) -> tuple[OwnTerm, ...]:
    """Terms, where names stand for those of installed packages.

    Raises:
        ConfigError: No package has one of that name.
        OwnCodeError: It cannot be loaded.
    """
    return tuple(_term_named(one) if isinstance(one, str) else one for one in terms)


def _term_named(name: str) -> OwnTerm:
    found = load_plug_in(TERMS, name, OwnTerm)
    if found is None:
        known = ", ".join(names_of_plug_ins(TERMS)) or "none"
        raise ConfigError(
            f"terms: {name!r}: no installed package has a term of this name (entry points {TERMS}: {known}); install "
            "one, or give an OwnTerm"
        )
    return found
