"""Texts that are learned from without labels: how their rows are read, and how many of them a step has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ted_ds.data.samples import Example, Label, Sample


class TextsAlone:
    """Rows (:class:`ted_ds.data.samples.Rows`) of which the texts are read, and nothing that is said about them."""

    are_labelled = True
    """By their kind; here, none has a label."""
    of_words = False
    counted_as = ""

    def __init__(self, columns: Sequence[str]) -> None:
        """Read the text, or the two of a pair, in ``columns``."""
        self.columns = columns

    @property
    def num_texts(self) -> int:
        """All columns hold some."""
        return len(self.columns)

    def read(
        self,
        row: Mapping[str, Any],
        *,
        where: str,  # noqa: ARG002 - as others do
        declared: Mapping[str, Sequence[str]],  # noqa: ARG002 - as others do
    ) -> Sequence[Example]:
        """The texts."""
        first, *second = (row[column] for column in self.columns)
        return [Example(first, None, *second)]

    def counted(self, label: Label | None) -> Sequence[str]:  # noqa: ARG002 - as others do
        """Nothing."""
        return ()


@dataclass(frozen=True)
class Transfer:
    """What a labelled stream mixes in."""

    samples: Sequence[Sample]
    share: Fraction
    """Of each step."""

    def rows_before(self, step: int, global_batch_size: int) -> int:
        """How many rows of all steps before one come from here: what the share makes, rounded down.

        So each step has the share of its rows, up to one, and a run of many steps has it too.
        """
        return step * global_batch_size * self.share.numerator // self.share.denominator


def share_of(value: float) -> Fraction:
    """The share that a recipe writes as a decimal, exactly: 0.3 is three in ten."""
    return Fraction(str(value))
