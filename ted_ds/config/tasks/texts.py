"""One prediction for a text."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ted_ds.config.tasks.base import HeadSection, OneOfLabels, WithLabels


class TextTask(HeadSection):
    """A text in, or a pair of two, and one prediction out."""

    architecture: ClassVar[str] = "SequenceClassification"
    why_no_transfer: ClassVar[str | None] = None
    text_column: str | list[str] = "text"
    """Column with the text; ``[first, second]``: those with the two texts of a pair."""

    @field_validator("text_column", mode="before")
    @classmethod
    def _is_one_or_two(cls, column: Any) -> Any:
        """One rule in words, where a union would give a message per member."""
        names = column if isinstance(column, list) else [column]
        if not all(isinstance(name, str) for name in names) or len(set(names)) != (2 if column is names else 1):
            raise ValueError("must be a column, or [first, second] with two columns for texts that come in pairs")
        return column

    @property
    def text_columns(self) -> list[str]:
        """The columns with texts: one, or two."""
        return self.text_column if isinstance(self.text_column, list) else [self.text_column]

    @property
    def takes_pairs(self) -> bool:
        """Where there are two."""
        return len(self.text_columns) > 1

    @property
    def document_column(self) -> str | None:
        """See :class:`~ted_ds.config.tasks.base.TaskSection`; pairs are no documents."""
        return self.text_column if isinstance(self.text_column, str) else None


class LabelledTask(TextTask, WithLabels):
    """A text in, something said about each of its labels out."""

    @property
    def possible_headlines(self) -> tuple[str, ...]:
        """All, but for F1 of the second label where there are more than two."""
        return tuple(name for name in self.metrics if name != "f1" or len(self.labels) == 2)


class SequenceClassification(LabelledTask, OneOfLabels):
    """One label per text."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "matthews_correlation", "f1", "loss")
    kind: Literal["sequence_classification"]
    label_column: str = "label"
    """Column with a label's name or id; nothing, or -100, where a row has none."""


class SoftLabelClassification(LabelledTask):
    """A distribution over the labels per text: annotators' votes, or another model's predictions."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "matthews_correlation", "f1", "loss")
    kind: Literal["soft_label_classification"]
    label_column: str = "label"
    """Column with a list of probabilities, in the order of ``labels``."""


class MultiLabelClassification(LabelledTask):
    """Any number of labels per text, each a yes or no of its own."""

    metrics: ClassVar[tuple[str, ...]] = ("f1_micro", "f1_macro", "exact_match", "loss")
    not_by_sums: ClassVar[tuple[str, ...]] = ("f1_macro",)
    kind: Literal["multi_label_classification"]
    label_column: str = "label"
    """Column with a list of the ids or names of the labels that hold."""


class Regression(TextTask):
    """One or more numbers per text."""

    softened: ClassVar[bool] = False
    outputs_key: ClassVar[str] = "target_columns"
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "loss")
    not_by_sums: ClassVar[tuple[str, ...]] = ("spearman",)
    kind: Literal["regression"]
    target_columns: list[str] = Field(default=["label"], min_length=1)
    """Columns with the numbers to predict, in the order of the model's outputs."""

    @property
    def output_names(self) -> list[str]:
        """The columns."""
        return self.target_columns
