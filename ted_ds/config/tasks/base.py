"""What planning, data and models ask of every kind of task, and what kinds have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ted_ds.config.finite_number import is_finite_number
from ted_ds.config.section import Section, open_value, rule
from ted_ds.config.tasks.masking import Masking
from ted_ds.errors import counted

BosSetting = Literal["auto", "always", "never"]


BALANCED = "balanced"
"""Class weights that follow from how frequent labels are."""


class TaskSection(Section):
    """What is asked of every kind of task."""

    architecture: ClassVar[str]
    """Of the models with their head, as transformers calls it: what follows ``AutoModelFor``."""
    has_lm_head: ClassVar[bool] = False
    """Whether that is an LM head, which came with the models; else one of its own in the place of it."""
    predicts_next_token: ClassVar[bool] = False
    """Whether its models can be tested as language models are."""
    new_lm_head: ClassVar[bool] = False
    """Whether files may lack it, as they may one of the task's own: it then starts random."""
    packed: ClassVar[bool] = False
    """Whether the data are documents, packed into sequences; else rows of a labelled set, held in memory."""
    pooled: ClassVar[bool] = True
    """Whether there is one prediction for a text, read at one of its tokens; else some for each token."""
    predicts_spans: ClassVar[bool] = False
    """Whether predictions are of where something starts and ends in a text."""
    softened: ClassVar[bool] = True
    """Whether predictions are probabilities, which a temperature softens."""
    length_key: ClassVar[str] = "max_length"
    """The key of ``sequence_length``, which every kind has, here."""
    outputs_key: ClassVar[str] = "labels"
    """The key of :attr:`output_names` here."""
    own_document_ends: ClassVar[bool] = False
    """Whether documents end with what the tokenizer's own encode puts behind a text; else with its end token."""
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("lm_head",)
    """Of ``filters``."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What a model may be compared by; none where there is no choice."""
    not_by_sums: ClassVar[tuple[str, ...]] = ()
    """Those of ``metrics`` that do not follow from sums over examples which are kept of each
    (:mod:`ted_ds.tasks.outcomes`)."""
    of_distillation: ClassVar[tuple[str, ...]] = ()
    """Keys here that Stage II alone depends on."""
    why_not_cached: ClassVar[str | None] = None
    """Why a teacher's outputs cannot be kept on disk, and what to do; None where they can."""
    why_no_ridge: ClassVar[str | None] = None
    """Why no filter can be solved towards what a head reads, and what to do; None where it can."""
    why_no_transfer: ClassVar[str | None] = (
        "it is for tasks with one prediction for a text, or for a pair of texts; remove it"
    )
    """Why nothing is learned from ``data.transfer``, and what to do; None where something is."""

    learning_rate: ClassVar[float] = 1e-4
    """Of Stage II, where a recipe says nothing: what recipes that ship and were run have for encoders of which a few
    blocks are left."""

    headline: str | None = None
    """The metric that checkpoints, and models in the table at the end, are compared by; unset: the kind's own."""

    @rule
    def _headline_is_a_metric(self) -> Iterator[str]:
        known = self.possible_headlines
        if self.headline is not None and self.headline not in known:
            what = f"use {_one_of(known)}" if known else "this kind of task has one alone; remove it"
            yield f"headline: {self.headline!r}: {what}"

    @property
    def possible_headlines(self) -> tuple[str, ...]:
        """Those of ``metrics`` that there are with these labels."""
        return self.metrics

    @property
    def text_columns(self) -> list[str]:
        """The columns with the text, or the texts of a pair, that go into a model as they are; none with other data."""
        return []

    @property
    def document_column(self) -> str | None:
        """The column of texts that a tokenizer can be trained on; None where there is none."""
        return getattr(self, "text_column", None)

    @property
    def rows_per_example(self) -> int:
        """Sequences that an example is read as."""
        return 1

    @property
    def takes_pairs(self) -> bool:
        """Whether two texts go into a model together."""
        return False

    @property
    def sequences(self) -> Literal["one", "more", "fewer"]:
        """Of examples: each is one, some are several, or some share one."""
        return "fewer" if self.packed else "one"

    @property
    def isolates_documents(self) -> bool:
        """Whether several texts share a sequence and are kept apart in it."""
        return False

    @property
    def place_of_isolation(self) -> str:
        """The key of the recipe that says so."""
        return "task"

    @property
    def without_isolation(self) -> str:
        """What to do where that cannot be."""
        return "use another task"

    @property
    def has_template(self) -> bool:
        """Whether a chat template decides what is read."""
        return False

    @property
    def reads_tokens(self) -> bool:
        """Whether rows hold tokens, and no text."""
        return False

    @property
    def template_file(self) -> Path | None:
        """The file of a chat template that is not the tokenizer's own."""
        return None

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

    @property
    def masked(self) -> Masking | None:
        """Which tokens of documents are hidden from the models, and predicted; None where they see all."""
        return None

    @property
    def predicted_share(self) -> float:
        """Of tokens, those whose predictions by an LM head are computed."""
        return 1.0

    def probe_sizes(self, dim: int) -> list[int]:
        """Numbers in each parameter of what stands on a filter of width ``dim`` in Stage I, without an LM head.

        See :mod:`ted_ds.models.heads`.
        """
        return [dim * dim, dim, dim * self.num_outputs, self.num_outputs]


def _one_of(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


class HeadSection(TaskSection):
    """A text in, and predictions out, by a head of the task's own."""

    max_length: int = Field(default=128, gt=1)
    """Longest text in tokens; longer ones are cut."""

    @property
    def sequence_length(self) -> int:
        """Longest sequence the models will see, in tokens."""
        return self.max_length


class WithLabels(HeadSection):
    """What is predicted has names."""

    labels: list[str] = Field(default_factory=open_value, min_length=2)
    """Label names in the order of their ids; they must be given, unless ``data.glue`` is."""
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
            yield (
                f"data_labels has {counted(len(self.data_labels), 'name')}, labels has {len(self.labels)}; give one "
                "for each"
            )

    @property
    def output_names(self) -> list[str]:
        """The labels."""
        return self.labels

    @property
    def label_names(self) -> list[str]:
        """All of them."""
        return self.labels


class OneOfLabels(WithLabels):
    """What is predicted is one of the labels, by a cross-entropy."""

    class_weights: list[float] | str | None = None
    """Of the task loss in training, in the order of ``labels``; unset: 1 each. It is divided by the number of labels
    given, not by the sum of their weights as torch's weighted mean is: weights with a mean of 1 over the data keep its
    size, as ``balanced`` does: a label's weight is the number of labels in the training data, divided by how many names
    there are and by how often it is among them (scikit-learn's definition)."""
    label_smoothing: float | None = Field(default=None, gt=0, lt=1)
    """Of the task loss in training: this share of each target is spread evenly over all labels; unset: none."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights_are_one_of_two(cls, weights: Any) -> Any:
        """One rule in words, where a union would give a message per member."""
        if isinstance(weights, list) and all(is_finite_number(one) and one >= 0 for one in weights):
            return [float(one) for one in weights]
        if weights in (None, BALANCED):
            return weights
        raise ValueError(f"must be {BALANCED}, or a list with a number for each of labels, 0 or above")

    @rule
    def _a_weight_for_each_label(self) -> Iterator[str]:
        weights = self.class_weights
        if isinstance(weights, list) and len(weights) != len(self.labels):
            yield (
                f"class_weights has {counted(len(weights), 'number')}, labels has "
                f"{counted(len(self.labels), 'name')}; give one for each"
            )
        if isinstance(weights, list) and not any(weights):
            yield "class_weights: all are 0, and nothing would be learned; give at least one above it"
