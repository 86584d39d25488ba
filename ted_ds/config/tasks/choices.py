"""One of several answers to a question."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase
from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import rule
from ted_ds.config.tasks.base import HeadSection
from ted_ds.errors import counted


class MultipleChoice(HeadSection):
    """A text with several choices in, which of them is right out: each is read beside the text, in a row of its own."""

    architecture: ClassVar[str] = "MultipleChoice"
    outputs_key: ClassVar[str] = "num_choices"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss")
    why_not_cached: ClassVar[str | None] = (
        "a cache keeps one text for each example, and a multiple_choice has one for each choice; remove it"
    )
    kind: Literal["multiple_choice"]
    rows: Literal["columns", "lettered"] = "columns"
    """``columns``: choices stand in columns of their own, or in a list. ``lettered``: question and choices are one
    text, or the last of a list of messages, with a letter before each choice, as in ``A: yes; B: no``."""
    text_column: str = "text"
    """Column with the text, or with all of it where choices are ``lettered``."""
    stem_column: str | None = None
    """Column with what each choice begins with, such as the first half of a sentence that the choices end."""
    choice_columns: list[str] | None = Field(default=None, min_length=2)
    """Columns with the choices, one for each."""
    list_column: str | None = None
    """Column with the list of the choices, in their place."""
    num_choices: int | None = Field(default=None, ge=2, le=len(ascii_uppercase))
    """How many there are, of every text; unset: as many as ``choice_columns``."""
    label_column: str = "label"
    """Column with the right choice: its number from 0, its letter, or its text; nothing, or -100, where a row has
    none."""
    data_labels: list[str] | None = None
    """What the data call the choices in their order, where those are no letters, such as ``["1", "2", "3"]``."""

    @rule
    def _choices_are_somewhere(self) -> Iterator[str]:
        given = [name for name in ("stem_column", "choice_columns", "list_column") if getattr(self, name) is not None]
        if self.rows == "lettered" and given:
            yield f"rows: lettered has all of a question in text_column; remove {' and '.join(given)}"
        if self.rows == "columns" and (self.choice_columns is None) == (self.list_column is None):
            yield "give the columns of the choices as choice_columns, or that of lists of them as list_column"

    @rule
    def _as_many_as_there_are(self) -> Iterator[str]:
        columns, names = self.choice_columns, self.data_labels
        if columns is None and self.num_choices is None:
            yield "num_choices is required where choices have no columns of their own; say how many there are"
        if columns is not None and self.num_choices not in (None, len(columns)):
            yield f"num_choices is {self.num_choices}, choice_columns has {len(columns)}; leave num_choices out"
        if names is not None and self.rows_per_example not in (1, len(names)):
            yield (
                f"data_labels has {counted(len(names), 'name')} for {self.rows_per_example} choices; give one for each"
            )
        if names is not None and len(set(names)) != len(names):
            yield f"data_labels must be distinct, got {names}"

    @property
    def rows_per_example(self) -> int:
        """One for each choice."""
        return self.num_choices or len(self.choice_columns or ()) or 1

    @property
    def takes_pairs(self) -> bool:
        """The text, and a choice."""
        return True

    @property
    def document_column(self) -> None:
        """None: questions and answers are no documents."""

    @property
    def output_names(self) -> list[str]:
        """How well a choice fits."""
        return ["fits"]
