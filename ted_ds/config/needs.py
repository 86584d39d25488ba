"""What terms of a loss ask of a teacher: the one answer that planning, assembling and training have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What a term, or all terms together, cannot do without."""

    predictions: bool = False
    """The teacher's, and the student's own beside them."""
    states: bool = False
    """Of the matched layers of both models."""
    filters: bool = False
    """Learned ones for these states, on both sides: Stage I."""
    relations: bool = False
    """What the attention of a block of each model reads."""

    @property
    def teacher(self) -> bool:
        """Whether there is a teacher at all."""
        return self.predictions or self.states or self.relations

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.predictions or other.predictions,
            self.states or other.states,
            self.filters or other.filters,
            self.relations or other.relations,
        )


NOTHING = Needs()
"""Of a term of the labels alone."""
