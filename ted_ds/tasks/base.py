"""What there is to know of a kind of task beyond its section.

A module of a kind imports torch and transformers only where it uses them: ``ted-ds check`` reads rows by it without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from ted_ds.config.data import Data, Padding
from ted_ds.config.tasks import TaskSection, TextTask
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.samples import Example, Label, Sample
from ted_ds.tasks.guess import Guess
from ted_ds.tasks.outcomes import Outcomes
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.layers import Filters
    from ted_ds.data.corpus_data import CorpusData
    from ted_ds.data.labelled_data import LabelledData
    from ted_ds.data.loader import Batch, Collator, Labels
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms

Task = TypeVar("Task", bound=TaskSection)
HeadTask = TypeVar("HeadTask", bound=TextTask)


LOSS = "loss"
"""The one metric of all kinds that is better where it is lower."""


class Scorer(Protocol):
    """How good predictions are."""

    headline: str
    """The metric that says it in one number."""
    higher_is_better: bool

    def observe(self, outputs: Tensor, batch: Batch) -> Any:
        """What is kept of a batch: of what :meth:`ted_ds.models.predictions.Predictions.outputs` gives."""
        ...

    def score(self, observations: Sequence[Any]) -> dict[str, float]:
        """Metrics over everything observed."""
        ...


class KindScorer(Scorer, Protocol):
    """That of a kind of task, which can also say how each example came out."""

    def outcomes(self, observations: Sequence[Any]) -> Outcomes:
        """What each example came to, and how metrics follow from that; of a language model, its loss says it all."""
        ...


class TaskKind(ABC, Generic[Task]):
    """A kind of task, for one recipe."""

    are_labelled: bool
    of_words: bool = False
    counted_as: str = "labels"
    collated_as: ClassVar[Labels]
    """What the labels of a batch are (:class:`ted_ds.data.loader.Collator`)."""
    one_class: ClassVar[bool] = False
    """Whether a text has one of the task's labels, or is most probably of one."""

    def __init__(self, task: Task) -> None:
        """Take the recipe's section."""
        self.task = task

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """See :class:`ted_ds.data.samples.Rows`."""

    @property
    def takes_pairs(self) -> bool:
        """See :class:`ted_ds.data.samples.LabelledRows`."""
        return self.task.takes_pairs

    @property
    def num_texts(self) -> int:
        """See :class:`ted_ds.data.samples.Rows`."""
        return 1

    @abstractmethod
    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> Sequence[Example]:
        """See :class:`ted_ds.data.samples.Rows`."""

    def counted(self, label: Label | None) -> Sequence[str]:  # noqa: ARG002 - as others do
        """See :class:`ted_ds.data.samples.Rows`."""
        return ()

    @abstractmethod
    def open_data(
        self, data: Data, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
    ) -> LabelledData | CorpusData:
        """The task's data, checked as far as it can be before training.

        Raises:
            DataError: A source or a row is wrong, or a split is empty.
        """

    def collator(self, pad_id: int, padding: Padding, *, with_token_types: bool = False) -> Collator:
        """What makes batches of samples, which may have token types."""
        from ted_ds.data.loader import Collator

        return Collator(
            pad_id,
            self.collated_as,
            side=padding.side,
            multiple_of=padding.multiple_of,
            with_token_types=with_token_types,
            **self._collator_settings(),
        )

    def _collator_settings(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """A row of a batch as a person reads it, with its labels."""

    # --- models -----------------------------------------------------------------------------------------------------

    def beginning(self, sample: Sample) -> Sequence[int] | None:  # noqa: ARG002 - as others do
        """Of a text that a model can go on with, the tokens to begin with; None where nothing is written."""
        return None

    @property
    @abstractmethod
    def head_config(self) -> dict[str, Any] | None:
        """What transformers' config says of a head of the task's own; None with an LM head."""

    @abstractmethod
    def probes(
        self,
        bank: FilterBank,
        filters: Filters,
        *,
        dim: int,
        model_path: Path,
        tapped: TappedModel,
        dtype: torch.dtype,
    ) -> FilterProbes:
        """What reads a model's filters in Stage I.

        Args:
            bank: The filters.
            filters: How the recipe has them.
            dim: Of what they put out.
            model_path: The model's folder.
            tapped: The model.
            dtype: Of its weights.

        Raises:
            CheckpointError: The folder lacks weights that they need.
        """

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def terms(self) -> TaskTerms:
        """The task loss and the prediction term, as models are scored and compared with a guess."""

    @property
    def training_terms(self) -> TaskTerms:
        """The same as models are trained by them."""
        return self.terms

    def settled(self, train: Sequence[Sample]) -> Task:  # noqa: ARG002 - as others do
        """The recipe's section with the numbers in it that follow from what is trained on.

        Raises:
            DataError: None do.
        """
        return self.task

    @property
    def weights_in_words(self) -> str | None:
        """What each label counts in the task loss in training; None where all count the same."""
        return None

    @property
    @abstractmethod
    def scorer(self) -> KindScorer:
        """What scores a model."""

    def files_of(self, observations: Sequence[Any]) -> Mapping[str, Any]:  # noqa: ARG002 - as others do
        """What is kept of a model's predictions once it is scored: what goes into JSON files, by their names."""
        return {}

    @property
    def headline(self) -> str:
        """The metric by which models are compared: the recipe's, or else the scorer's."""
        return self.task.headline or self.scorer.headline  # type: ignore[attr-defined]

    @property
    def higher_is_better(self) -> bool:
        """Of the ``headline``."""
        is_loss = self.headline == LOSS
        return self.scorer.higher_is_better if self.headline == self.scorer.headline else not is_loss

    def told(self, sample: Sample) -> Any:
        """What of a held-out sample with a label a guess is told: the label."""
        return sample.label

    @abstractmethod
    def guess(self, labels: Sequence[Any], *, vocab_size: int) -> Guess:
        """What a model that knows the task must beat.

        Args:
            labels: What it is told (:meth:`told`) of held-out samples, where these have labels.
            vocab_size: Ids that an LM head tells apart.
        """


class HeadKind(TaskKind[HeadTask]):
    """A text in, or a pair of two, and one prediction out, by a head of the task's own."""

    are_labelled = True
    problem_type: ClassVar[str]
    """What transformers calls it, and goes by to compute a loss of its own."""

    @property
    def label_columns(self) -> list[str]:
        """The columns that hold labels."""
        return [self.task.label_column]  # type: ignore[attr-defined]

    @property
    def text_columns(self) -> list[str]:
        """The columns that hold texts."""
        return self.task.text_columns

    @property
    def columns(self) -> list[str]:
        """Those of texts, and those of labels."""
        return [*self.text_columns, *self.label_columns]

    @property
    def num_texts(self) -> int:
        """See :class:`ted_ds.data.samples.Rows`."""
        return len(self.text_columns)

    def read(self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]]) -> Sequence[Example]:
        """The text, or both of a pair, and the label."""
        first, *second = (row[column] for column in self.text_columns)
        return [Example(first, self.read_label(row, where=where, declared=declared), *second)]

    @abstractmethod
    def read_label(
        self, row: Mapping[str, Any], *, where: str, declared: Mapping[str, Sequence[str]] = {}
    ) -> Label | None:
        """The label of a row; None where it has none: nothing, -100 or NaN.

        Text may stand for labels and numbers, as in CSV files. Label names are compared as text before anything is
        taken for a number; an id that the data themselves have ``declared`` a name for is that name.

        Raises:
            DataError: It is not what the task asks for; ``where`` begins the message.
        """

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Sequence[Sequence[Sample] | str]:
        """Texts as the tokenizer's own encode reads them, cut to the longest allowed; of a pair the longer text first.

        What stands between the two of a pair, and their token types, are the tokenizer's own, too.
        """
        if not examples:
            return []
        sides = [[*side] for side in zip(*(example.texts for example in examples), strict=True)]
        encoded = tokenizer(*sides, truncation=True, max_length=self.task.max_length)
        types = encoded.get("token_type_ids") if len(sides) > 1 else None
        return [
            [Sample(ids, example.label, token_types=own)]
            for ids, example, own in zip(encoded["input_ids"], examples, types or [None] * len(examples), strict=True)
        ]

    def open_data(
        self, data: Data, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
    ) -> LabelledData:
        """A labelled set."""
        from ted_ds.data.labelled_data import LabelledData

        return LabelledData(data, self, tokenizer, listing, max_heldout=max_heldout)

    def _collator_settings(self) -> dict[str, Any]:
        return {"num_outputs": self.task.num_outputs} if self.collated_as == "numbers" else {}

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text, and what is said about it."""
        text = shown_tokens(batch, row, tokenizer, batch.kept_tokens[row].tolist())
        return f"{text}  -> {self._shown_label(batch.labels[row])}"

    def _shown_label(self, label: Tensor) -> str:
        names = self.task.output_names
        if not self.terms.kept(label).all():
            return "ignored"
        if label.is_floating_point():
            return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, label.tolist(), strict=True))
        return names[int(label)]

    @property
    def head_config(self) -> dict[str, Any]:
        """Names of its outputs, and what they are, so that an exported model computes its own loss as trained."""
        return {**outputs_by_name(self.task.output_names), "problem_type": self.problem_type}

    def probes(
        self,
        bank: FilterBank,
        filters: Filters,
        *,
        dim: int,
        model_path: Path,  # noqa: ARG002 - as others do
        tapped: TappedModel,
        dtype: torch.dtype,  # noqa: ARG002 - as others do
    ) -> FilterProbes:
        """A classifier each, at the token that the model itself is read at, or on the mean."""
        from ted_ds.models.heads import classification_probes

        return classification_probes(
            bank,
            dim=dim,
            num_labels=self.task.num_outputs,
            pooling=pooling_of(filters, tapped),
            unread_id=tapped.unread_id,
        )


def outputs_by_name(names: Sequence[str]) -> dict[str, Any]:
    """What transformers' config says of a head whose outputs have these names, in their order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def pooling_of(filters: Filters, tapped: TappedModel) -> str:
    """Where a text is read by what stands on its features in Stage I: as the recipe says, or where the model is."""
    return tapped.pooled_token if filters.pooling == "model" else filters.pooling
