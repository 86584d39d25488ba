"""Prediction of tokens that the model does not see, in packed documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ted_ds.config.tasks import MaskedLm
from ted_ds.data.samples import UNLABELLED
from ted_ds.tasks.document_kind import DocumentKind
from ted_ds.tasks.outcomes import Outcomes
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.loader import Batch
    from ted_ds.numerics.task_terms import TaskTerms

Observation = tuple[float, int, int]
"""Summed cross-entropy, the number of tokens found out, and that of predicted ones."""


class MaskedLmKind(DocumentKind[MaskedLm]):
    """See :class:`ted_ds.config.tasks.MaskedLm`."""

    collated_as = "token_classes"

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """Its documents as the model reads them, each predicted token followed by what it is."""
        labels = batch.labels[row].tolist()
        own = {
            place: str(tokenizer.convert_ids_to_tokens(label))
            for place, label in enumerate(labels)
            if label != UNLABELLED
        }
        return shown_tokens(batch, row, tokenizer, [place in own for place in range(len(labels))], own)

    def _collator_settings(self) -> dict[str, Any]:
        return {"predict_all": self.task.kl_on == "all"}

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy, and KL over the vocabulary."""
        from ted_ds.numerics.task_terms import MASKED_LM, MASKED_LM_ON_ALL

        return MASKED_LM_ON_ALL if self.task.kl_on == "all" else MASKED_LM

    @property
    def scorer(self) -> MaskedTokens:
        """By pseudo-perplexity."""
        return MaskedTokens(self.terms)


class MaskedTokens:
    """Pseudo-perplexity and accuracy on masked tokens; the loss is in nats per masked token.

    All masked tokens of a sequence are hidden at once, by a mask that is the same for every model and run: not the
    pseudo-perplexity of Salazar et al. (2020), which hides one token at a time.
    """

    headline = "pseudo_perplexity"
    higher_is_better = False

    def __init__(self, terms: TaskTerms) -> None:
        self._terms = terms

    def observe(self, outputs: Tensor, batch: Batch) -> Observation:
        """Sums, which the ``outputs`` are, and count of a batch."""
        loss, right = outputs.tolist()
        return loss, int(right), int(self._terms.kept(batch.labels).sum())

    def score(self, observations: Sequence[Observation]) -> dict[str, float]:
        """The loss, its exponential, and the share of tokens found out, over everything observed."""
        losses, right, counts = (sum(column) for column in zip(*observations, strict=True))
        loss = losses / counts
        return {
            "pseudo_perplexity": math.exp(min(loss, 700.0)),
            "masked_accuracy": right / counts,
            "loss": loss,
            "num_tokens": counts,
        }

    def outcomes(self, observations: Sequence[Observation]) -> Outcomes:  # noqa: ARG002 - as others do
        """The loss of each sequence is all that is kept."""
        return Outcomes({}, {"pseudo_perplexity": ["exp_ratio", "loss", "count"]})
