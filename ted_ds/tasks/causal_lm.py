"""Next-token prediction on packed documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ted_ds.config.tasks import CausalLm
from ted_ds.data.samples import Sample
from ted_ds.tasks.document_kind import DocumentKind
from ted_ds.tasks.outcomes import Outcomes
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms

BEGINNING = 24
"""Tokens of a text that a model goes on with."""
Observation = tuple[float, int]
"""Summed cross-entropy, and the number of predicted tokens."""


class CausalLmKind(DocumentKind[CausalLm]):
    """See :class:`ted_ds.config.tasks.CausalLm`."""

    collated_as = "tokens"

    def _collator_settings(self) -> dict[str, Any]:
        return {"isolate_documents": self.task.packing.isolate_documents}

    def beginning(self, sample: Sample) -> Sequence[int]:
        """That of its first document, or half of it where that is short."""
        length = (*sample.document_lengths, len(sample.input_ids))[0]
        return sample.input_ids[: min(BEGINNING, (length + 1) // 2)]

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """Its documents; each label stands one place before its token."""
        return shown_tokens(batch, row, tokenizer, [False, *self.terms.kept(batch.labels[row][:-1]).tolist()])

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the vocabulary."""
        from ted_ds.numerics.task_terms import CAUSAL_LM

        return CAUSAL_LM

    @property
    def scorer(self) -> LanguageModel:
        """By perplexity."""
        return LanguageModel(self.terms)


class LanguageModel:
    """Perplexity; the loss is in nats per token."""

    headline = "perplexity"
    higher_is_better = False

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Sum, the first of the ``outputs``, and count of a batch."""
        return float(outputs[0]), int(self._terms.kept(batch.labels).sum())

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """The loss and its exponential, over everything observed."""
        num_tokens = sum(count for _, count in observations)
        loss = sum(total for total, _ in observations) / num_tokens
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "num_tokens": num_tokens}

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:  # noqa: ARG002 - as others do
        """The loss of each sequence is all there is."""
        return Outcomes({}, {"perplexity": ["exp_ratio", "loss", "count"]})
