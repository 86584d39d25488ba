"""One prediction for a text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.tasks.base import HeadSection, WithLabels


class TextTask(HeadSection):
    """A text in, one prediction out."""

    architecture: ClassVar[str] = "SequenceClassification"
    text_column: str = "text"


class LabelledTask(TextTask, WithLabels):
    """A text in, something said about each of its labels out."""


class SequenceClassification(LabelledTask):
    """One label per text."""

    kind: Literal["sequence_classification"]
    label_column: str = "label"
    """Column with a label's name or id; nothing, or -100, where a row has none."""


class SoftLabelClassification(LabelledTask):
    """A distribution over the labels per text: annotators' votes, or another model's predictions."""

    kind: Literal["soft_label_classification"]
    label_column: str = "label"
    """Column with a list of probabilities, in the order of ``labels``."""


class MultiLabelClassification(LabelledTask):
    """Any number of labels per text, each a yes or no of its own."""

    kind: Literal["multi_label_classification"]
    label_column: str = "label"
    """Column with a list of the ids or names of the labels that hold."""


class Regression(TextTask):
    """One or more numbers per text."""

    softened: ClassVar[bool] = False
    outputs_key: ClassVar[str] = "target_columns"
    kind: Literal["regression"]
    target_columns: list[str] = Field(default=["label"], min_length=1)
    """Columns with the numbers to predict, in the order of the model's outputs."""

    @property
    def output_names(self) -> list[str]:
        """The columns."""
        return self.target_columns
