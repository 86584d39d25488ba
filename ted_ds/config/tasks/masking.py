"""Which tokens are hidden from a masked language model."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ted_ds.config.section import Section, rule


class Masking(Section):
    """Which tokens of a sequence are predicted, and what the model reads in their place; drawn anew each time."""

    probability: float = Field(default=0.15, gt=0, lt=1)
    """The share of a sequence's tokens that are predicted: as many of each sequence, and at least one; never special
    tokens."""
    whole_words: bool = False
    """Choose so many of its words, with all of their tokens, and not of its tokens."""
    to_mask: float = Field(default=0.8, ge=0, le=1)
    """Of the chosen, the share in whose place the model reads the mask token."""
    to_random: float = Field(default=0.1, ge=0, le=1)
    """The share in whose place it reads a token drawn from the vocabulary. The rest it reads as they are."""

    @rule
    def _shares_are_of_one_whole(self) -> Iterator[str]:
        if self.to_mask + self.to_random > 1:
            yield (
                f"to_mask is {self.to_mask} and to_random {self.to_random}: shares of the same tokens; together at "
                "most 1"
            )
