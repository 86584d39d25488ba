"""Next-token prediction on packed documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ted_ds.config.data import Data
from ted_ds.config.tasks import CausalLm
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.samples import Example
from ted_ds.tasks.base import TaskKind
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.schema import Filters
    from ted_ds.data.corpus_data import CorpusData
    from ted_ds.data.loader import Batch
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms

Observation = tuple[float, int]
"""Summed cross-entropy, and the number of predicted tokens."""


class CausalLmKind(TaskKind[CausalLm]):
    """See :class:`ted_ds.config.tasks.CausalLm`."""

    are_labelled = False
    collated_as = "tokens"

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

    def _collator_settings(self) -> dict[str, Any]:
        return {"isolate_documents": self.task.packing.isolate_documents}

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """Its documents; each label stands one place before its token."""
        return shown_tokens(batch, row, tokenizer, [False, *self.terms.kept(batch.labels[row][:-1]).tolist()])

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
        """The model's own norm and LM head, or a new linear head each."""
        from ted_ds.models.heads import lm_probes

        return lm_probes(bank, dim=dim, model_path=model_path, kind=filters.lm_head, dtype=dtype)

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the vocabulary."""
        from ted_ds.numerics.task_terms import CAUSAL_LM

        return CAUSAL_LM

    @property
    def scorer(self) -> LanguageModel:
        """By perplexity."""
        return LanguageModel(self.terms)

    def guess(self, labels: Sequence[Any], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the vocabulary."""
        return one_of(vocab_size)


class LanguageModel:
    """Perplexity; the loss is in nats per token."""

    headline = "perplexity"
    higher_is_better = False

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Sum, which the ``outputs`` are, and count of a batch."""
        return float(outputs), int(self._terms.kept(batch.labels).sum())

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """The loss and its exponential, over everything observed."""
        num_tokens = sum(count for _, count in observations)
        loss = sum(total for total, _ in observations) / num_tokens
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "num_tokens": num_tokens}
