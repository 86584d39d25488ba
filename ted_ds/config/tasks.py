"""The recipe's ``task`` section: what goes into the models and what they predict, by kind.

A section says, without torch, what planning, data and models ask of a kind of task; all else about it is in
``ted_ds/tasks/``, in a module of its name. Nobody outside of these two asks which kind a task is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ted_ds.config.section import Section, rule

BosSetting = Literal["auto", "always", "never"]


class TaskSection(Section):
    """What is asked of every kind of task."""

    architecture: ClassVar[str]
    """Of the models with their head, as transformers calls it: what follows ``AutoModelFor``."""
    has_lm_head: ClassVar[bool] = False
    """Whether that is an LM head, which came with the models; else one of its own in the place of it."""
    packed: ClassVar[bool] = False
    """Whether the data are documents, packed into sequences; else rows of a labelled set, held in memory."""
    pooled: ClassVar[bool] = True
    """Whether there is one prediction for a text, read at one of its tokens; else some for each token."""
    softened: ClassVar[bool] = True
    """Whether predictions are probabilities, which a temperature softens."""
    length_key: ClassVar[str] = "max_length"
    """The key of ``sequence_length``, which every kind has, here."""
    outputs_key: ClassVar[str] = "labels"
    """The key of :attr:`output_names` here."""
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("lm_head",)
    """Of ``filters``."""
    why_not_cached: ClassVar[str | None] = None
    """Why a teacher's outputs cannot be kept on disk, and what to do; None where they can."""

    @property
    def document_column(self) -> str | None:
        """The column of texts that a tokenizer can be trained on; None where there is none."""
        return getattr(self, "text_column", None)

    @property
    def output_names(self) -> list[str]:
        """Of the outputs of a head of its own, in their order."""
        return []

    @property
    def label_names(self) -> list[str]:
        """Those of ``output_names`` that are classes."""
        return []

    @property
    def num_outputs(self) -> int:
        """Outputs of a head of its own."""
        return len(self.output_names)

    @property
    def document_start(self) -> BosSetting | None:
        """Whether documents start with the BOS token; None where texts are read as the tokenizer's encode does."""
        return None

    def probe_sizes(self, dim: int) -> list[int]:
        """Numbers in each parameter of what stands on a filter of width ``dim`` in Stage I, without an LM head.

        See :mod:`ted_ds.models.heads`.
        """
        return [dim * dim, dim, dim * self.num_outputs, self.num_outputs]


class HeadSection(TaskSection):
    """A text in, and predictions out, by a head of the task's own."""

    max_length: int = Field(default=128, gt=1)
    """Longest text in tokens; longer ones are cut."""

    @property
    def sequence_length(self) -> int:
        """Longest sequence the models will see, in tokens."""
        return self.max_length


class TextTask(HeadSection):
    """A text in, one prediction out."""

    architecture: ClassVar[str] = "SequenceClassification"
    text_column: str = "text"


class WithLabels(HeadSection):
    """What is predicted has names."""

    labels: list[str] = Field(min_length=2)
    """Label names in the order of their ids."""
    data_labels: list[str] | None = None
    """What the data call each of ``labels``, in their order, where they call them otherwise."""

    @field_validator("labels", "data_labels", mode="before")
    @classmethod
    def _names_are_text(cls, names: Any) -> Any:
        """YAML makes a number of a name such as 1, and a truth value of no."""
        if not isinstance(names, list):
            return names
        for name in names:
            if isinstance(name, bool | float) or name is None:
                raise ValueError(f"{name!r} is no text; put each name in quotes")
        return [str(name) if isinstance(name, int) else name for name in names]

    @rule
    def _labels_distinct(self) -> Iterator[str]:
        for key, names in (("labels", self.labels), ("data_labels", self.data_labels or [])):
            if len(set(names)) != len(names):
                yield f"{key} must be distinct, got {names}"
        if self.data_labels is not None and len(self.data_labels) != len(self.labels):
            yield f"data_labels has {len(self.data_labels)} names, labels has {len(self.labels)}; give one for each"

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return self.labels

    @property
    def label_names(self) -> list[str]:
        """All of them."""
        return self.labels


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


class TokenClassification(WithLabels):
    """A label for each word of a text: entities, parts of speech."""

    architecture: ClassVar[str] = "TokenClassification"
    pooled: ClassVar[bool] = False
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("lm_head", "pooling")
    why_not_cached: ClassVar[str | None] = (
        "a cache keeps one prediction for each text, and a token_classification has one for each word; remove it"
    )
    kind: Literal["token_classification"]
    rows: Literal["lists", "conll"] = "lists"
    """``lists``: a row has a list of words, and one of labels. ``conll``: it is the lines of a sentence, each with a
    word in its first column and a label in its last; white space is between columns, and a blank line between
    sentences, in text sources with ``documents: block``."""
    words_column: str = "tokens"
    label_column: str = "ner_tags"
    """Column with the labels' names or ids; nothing, or -100, for a word that has none."""

    @rule
    def _columns_are_of_lists(self) -> Iterator[str]:
        given = [name for name in ("words_column", "label_column") if name in self.model_fields_set]
        if self.rows == "conll" and given:
            yield f"rows: conll has no columns with names; remove {' and '.join(given)}"

    def probe_sizes(self, dim: int) -> list[int]:
        """Numbers in the weight and the bias of a linear head."""
        return [dim * self.num_outputs, self.num_outputs]


class Packing(Section):
    """How documents share a sequence."""

    isolate_documents: bool = True
    """Documents in one sequence do not attend to each other, each counts its positions from 0, and none predicts the
    first token of the next."""
    method: Literal["wrap", "best_fit"] = "wrap"
    """``wrap`` joins documents and cuts the whole: every sequence is full. ``best_fit`` cuts only documents longer than
    a sequence, and fills each up with the largest piece that fits; what stays empty is padding."""
    window: int = Field(default=32, gt=1)
    """``best_fit``: pieces to choose from."""


class CausalLm(TaskSection):
    """Continual pre-training: next-token prediction on packed documents."""

    architecture: ClassVar[str] = "CausalLM"
    has_lm_head: ClassVar[bool] = True
    packed: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    length_key: ClassVar[str] = "sequence_length"
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("pooling",)
    why_not_cached: ClassVar[str | None] = (
        "the packed sequences of a causal_lm do not come again; remove it (it is for task data)"
    )
    kind: Literal["causal_lm"]
    sequence_length: int = Field(gt=1)
    """Tokens per packed sequence."""
    text_column: str = "text"
    bos: BosSetting = "auto"
    """Whether each document starts with the tokenizer's BOS token: ``auto`` puts before it what the tokenizer's own
    ``encode`` puts before a text (nothing, with many). What a cut document goes on with starts with no such token."""
    packing: Packing = Packing()

    @property
    def document_start(self) -> BosSetting:
        """Whether documents start with the BOS token."""
        return self.bos


HeadTask = (
    SequenceClassification | SoftLabelClassification | MultiLabelClassification | Regression | TokenClassification
)
"""Tasks whose models end in a head of their own, in place of the LM head."""
Task = HeadTask | CausalLm
