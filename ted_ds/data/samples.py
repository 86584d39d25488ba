"""What a model is trained on, one row at a time, and what a labelled set asks of its kind of task to get there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ted_ds.errors import DataError

UNLABELLED = -100
"""What transformers puts where a label is ignored."""
Label = int | Sequence[float]
"""A class id; a number for each of the model's outputs, NaN for a target that a row does not have; a class id for
each token; of each completion in a conversation, its first token and that behind its last; the tokens where an
answer starts and ends (of an example, its characters, and none where nothing is one); or those of a target."""


@dataclass(frozen=True)
class Sample:
    """One sequence."""

    input_ids: Sequence[int]
    label: Label | None = None
    """None where the labels are the next tokens, or there are none."""
    document_lengths: Sequence[int] = ()
    """Tokens of each document in a packed sequence."""
    index: int = -1
    """Its place in a labelled training set, behind which the texts of ``data.transfer`` are, or among the sequences of
    a stream; -1 elsewhere."""
    num_cut: int = 0
    """Labels that no token stands for, of a text that has many: their words were cut off, or the tokenizer makes
    nothing of them."""
    token_types: Sequence[int] | None = None
    """Of each token of a pair, by the tokenizer: which of its two texts it is of. None where it does not say."""
    choices: tuple[Sample, ...] = ()
    """Of a question with several answers: a sequence with each, of which this is the longest; none where there is
    nothing to choose from."""
    candidates: Sequence[range] = ()
    """The tokens that a label may be one of, where labels are tokens."""
    facts: Any = None
    """What a scorer must know of it beside its label; None where it is trained on."""
    of_teacher: Sample | None = None
    """The same as the teacher's own tokenizer reads it; None where one tokenizer reads for both models."""

    @property
    def length(self) -> int:
        """Tokens that a model reads of it at most."""
        return max(len(one.input_ids) for one in (self, self.of_teacher) if one is not None)

    @property
    def sequences(self) -> tuple[Sample, ...]:
        """What a model reads of it: itself, or one for each choice."""
        return self.choices or (self,)


ONE_SIDE = "a pair with one side missing"


@dataclass(frozen=True)
class Example:
    """A row of a labelled set as it was read."""

    text: str
    label: Label | None
    """None where the row has none."""
    second: str | None = None
    """The other text of a pair."""
    wrong: str | None = field(default=None, kw_only=True)
    """What was seen to be wrong with it as it was read, where others of its row may be right."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The one, or both."""
        return (self.text,) if self.second is None else (self.text, self.second)

    @property
    def whole_text(self) -> str:
        """All that is read of it, by which copies are known: two pairs have the same only if both texts are.

        Examples with the same are held out together, or not at all.
        """
        return "\0".join(self.texts)

    def fault(self, columns: Sequence[str]) -> str | None:
        """What makes it useless: what is wrong with it, or a text that a label cannot be about; None if nothing does.

        Args:
            columns: The texts are in the first of them.
        """
        if self.wrong is not None:
            return self.wrong
        for column, text in zip(columns, self.texts, strict=False):
            if not text.strip():
                missing = "there is nothing in it to predict from"
                return f"column {column!r} holds {text!r:.20}; {missing if self.second is None else ONE_SIDE}"
        return None


class BadRow(DataError):
    """What is wrong with a row that is skipped and counted, where others may be right."""


class Rows(Protocol):
    """How a kind of task reads rows; without torch, transformers or datasets."""

    @property
    def are_labelled(self) -> bool:
        """Whether they are those of a labelled set; else documents."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """What is read of a row, its texts first; nothing where all of it is."""
        ...

    @property
    def num_texts(self) -> int:
        """How many of ``columns`` hold texts: one, or two of pairs; none where a row holds pairs deeper within."""
        ...

    @property
    def of_words(self) -> bool:
        """Whether a list of words stands in the place of the text."""
        ...

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> Sequence[Example]:
        """The examples in a row: one, as a rule; none where it is something between them.

        Args:
            row: With at least ``columns``.
            where: Begins messages.
            declared: The names that the data declare for the ids in a column.

        Raises:
            BadRow: It cannot be used.
            DataError: It is not what the task asks for.
        """
        ...

    @property
    def counted_as(self) -> str:
        """What the names are that :meth:`counted` gives, in a message before them."""
        ...

    def counted(self, label: Label | None) -> Sequence[str]:
        """What is counted of a label, by name; nothing where there are no classes to count."""
        ...


class LabelledRows(Rows, Protocol):
    """How a kind of task makes samples of the rows of a labelled set."""

    @property
    def takes_pairs(self) -> bool:
        """Whether two texts go into a model together."""
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Sequence[Sequence[Sample] | str]:
        """Each example as the models take it, in one sample or several; or what is wrong with it.

        There is none of one that is right, and of which nothing is left to learn within the task's longest sequence.
        """
        ...
