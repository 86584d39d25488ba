"""What a model is trained on, one row at a time, and what a labelled set asks of its kind of task to get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

UNLABELLED = -100
"""What transformers puts where a label is ignored."""
Label = int | Sequence[float]
"""A class id; a number for each of the model's outputs, NaN for a target that a row does not have; or a class id for
each token."""


@dataclass(frozen=True)
class Sample:
    """One sequence."""

    input_ids: list[int]
    label: Label | None = None
    """None where the labels are the next tokens, or there are none."""
    document_lengths: Sequence[int] = ()
    """Tokens of each document in a packed sequence."""
    index: int = -1
    """Its place in a labelled training set; -1 elsewhere."""
    num_cut: int = 0
    """Labels that no token stands for, of a text that has many: their words were cut off, or the tokenizer makes
    nothing of them."""


@dataclass(frozen=True)
class Example:
    """A row of a labelled set as it was read."""

    text: str
    label: Label | None
    """None where the row has none."""


class Rows(Protocol):
    """How a kind of task reads rows; without torch, transformers or datasets."""

    @property
    def are_labelled(self) -> bool:
        """Whether they are those of a labelled set; else documents."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """What is read of a row, the text first."""
        ...

    @property
    def of_words(self) -> bool:
        """Whether a list of words stands in the place of the text."""
        ...

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> Example | None:
        """What a row says; None where it is no example, but something between them.

        Args:
            row: With at least ``columns``.
            where: Begins messages.
            declared: The names that the data declare for the ids in a column.

        Raises:
            DataError: It is not what the task asks for.
        """
        ...

    def counted(self, label: Label | None) -> Sequence[str]:
        """What is counted of a label, by name; nothing where there are no classes to count."""
        ...


class LabelledRows(Rows, Protocol):
    """How a kind of task makes samples of the rows of a labelled set."""

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> list[Sample]:
        """The examples as the models take them."""
        ...


def empty_text_fault(column: str, text: str) -> str | None:
    """What is wrong with a text that a label cannot be about; None if nothing is."""
    return None if text.strip() else f"column {column!r} holds {text!r:.20}; there is nothing in it to predict from"
