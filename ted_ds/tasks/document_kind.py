"""What kinds of tasks on packed documents have in common: rows are documents, and an LM head predicts their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ted_ds.config.data import Data
from ted_ds.config.tasks import DocumentTask
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.samples import Example
from ted_ds.tasks.base import TaskKind
from ted_ds.tasks.guess import Guess, one_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.layers import Filters
    from ted_ds.data.corpus_data import CorpusData
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank

Task = TypeVar("Task", bound=DocumentTask)


class DocumentKind(TaskKind[Task]):
    """Packed documents in, predictions for tokens of them out, by the LM head."""

    are_labelled = False

    @property
    def columns(self) -> list[str]:
        """That of documents."""
        return [self.task.text_column]

    def read(
        self,
        row: Mapping[str, Any],
        *,
        where: str,  # noqa: ARG002 - as others do
        declared: Mapping[str, Sequence[str]],  # noqa: ARG002 - as others do
    ) -> Sequence[Example]:
        """A document."""
        return [Example(row[self.task.text_column], None)]

    def open_data(
        self, data: Data, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
    ) -> CorpusData:
        """A corpus."""
        from ted_ds.data.corpus_data import CorpusData

        return CorpusData(data, self.task, tokenizer, listing, max_heldout=max_heldout)

    @property
    def head_config(self) -> None:
        """Nothing: the LM head is the models' own."""

    def probes(
        self,
        bank: FilterBank,
        filters: Filters,
        *,
        dim: int,
        model_path: Path,
        tapped: TappedModel,  # noqa: ARG002 - as others do
        dtype: torch.dtype,
    ) -> FilterProbes:
        """The model's own LM head with what stands before it, or a new linear head each."""
        from ted_ds.models.heads import lm_probes

        return lm_probes(bank, dim=dim, model_path=model_path, kind=filters.lm_head, dtype=dtype)

    def guess(self, labels: Sequence[Any], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the vocabulary."""
        return one_of(vocab_size)
