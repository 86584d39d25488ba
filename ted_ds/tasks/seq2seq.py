"""Sequence-to-sequence language models: which tokens of a target follow from a source."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ted_ds.config.data import Data
from ted_ds.config.tasks import Seq2Seq
from ted_ds.data.reading.listing import DataListing
from ted_ds.data.samples import BadRow, Example, Sample
from ted_ds.tasks.base import TaskKind
from ted_ds.tasks.causal_lm import LanguageModel
from ted_ds.tasks.guess import Guess, one_of
from ted_ds.tasks.outcomes import Outcomes
from ted_ds.tasks.shown import shown_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ted_ds.config.layers import Filters
    from ted_ds.data.labelled_data import LabelledData
    from ted_ds.data.loader import Batch
    from ted_ds.models.heads import FilterProbes
    from ted_ds.models.taps import TappedModel
    from ted_ds.numerics.filters import FilterBank
    from ted_ds.numerics.task_terms import TaskTerms


@dataclass(frozen=True)
class Translation(Example):
    """A source, and the target that is to be written of it: its tokens are its label, once there are any."""

    target: str = ""

    @property
    def whole_text(self) -> str:
        """The source: what is held out of it is so whatever its targets."""
        return self.text


class Seq2SeqKind(TaskKind[Seq2Seq]):
    """See :class:`ted_ds.config.tasks.Seq2Seq`."""

    are_labelled = True
    collated_as = "targets"

    # --- data -------------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """That of sources, then that of targets."""
        return [self.task.source_column, self.task.target_column]

    def read(
        self,
        row: Mapping[str, Any],
        *,
        where: str,  # noqa: ARG002 - as others do
        declared: Mapping[str, Sequence[str]],  # noqa: ARG002 - as others do
    ) -> Sequence[Translation]:
        """The source and the target.

        Raises:
            BadRow: The target is no text, or there is nothing in it.
        """
        source, target = (row[column] for column in self.columns)
        if not isinstance(target, str) or not target.strip():
            raise BadRow(f"column {self.task.target_column!r} holds {target!r:.20}; there is nothing in it to learn")
        return [Translation(source, (), target=target)]

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> list[list[Sample]]:
        """Both as the tokenizer's own encode reads them, each cut to its longest allowed; the prefix goes before."""
        if not examples:
            return []
        sources = [f"{self.task.prefix}{example.text}" for example in examples]
        targets = [example.target for example in examples if isinstance(example, Translation)]
        read = tokenizer(sources, truncation=True, max_length=self.task.max_source_length)["input_ids"]
        written = tokenizer(text_target=targets, truncation=True, max_length=self.task.max_target_length)["input_ids"]
        # arrays, as they hold a token in a tenth of what a list takes
        return [[Sample(array("i", ids), array("i", own))] for ids, own in zip(read, written, strict=True)]

    def open_data(
        self, data: Data, tokenizer: PreTrainedTokenizerBase, listing: DataListing, *, max_heldout: int
    ) -> LabelledData:
        """A set of sources with their targets."""
        from ted_ds.data.labelled_data import LabelledData

        return LabelledData(data, self, tokenizer, listing, max_heldout=max_heldout)

    def show_row(self, batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
        """The source, and the target that is learned."""
        source = shown_tokens(batch, row, tokenizer, [False] * batch.input_ids.shape[1])
        assert batch.target_ids is not None
        assert batch.kept_targets is not None
        kept = batch.kept_targets[row]
        return f"{source}  -> {tokenizer.decode(batch.target_ids[row][kept].tolist())!r}"

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def head_config(self) -> None:
        """It has an LM head."""

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
        """The model's own LM head, or a new linear one each: behind a reader, where states are of the encoder."""
        from ted_ds.models.readers import seq2seq_probes

        return seq2seq_probes(bank, dim=dim, model_path=model_path, kind=filters.lm_head, dtype=dtype)

    # --- numbers ----------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> TaskTerms:
        """Cross-entropy of the targets' tokens, and KL over the vocabulary at them."""
        from ted_ds.numerics.task_terms import CAUSAL_LM

        return CAUSAL_LM

    @property
    def scorer(self) -> TargetTokens:
        """By perplexity."""
        return TargetTokens(self.terms)

    def told(self, sample: Sample) -> Any:  # noqa: ARG002 - as others do
        """Nothing: no token of a target is known before it is read."""
        return None

    def guess(self, labels: Sequence[Any], *, vocab_size: int) -> Guess:  # noqa: ARG002 - as others do
        """One of the vocabulary."""
        return one_of(vocab_size)


class TargetTokens:
    """Perplexity of targets, and the share of their tokens that are the likeliest where the tokens before are right."""

    headline = "perplexity"
    higher_is_better = False

    def __init__(self, terms: TaskTerms) -> None:
        self._model = LanguageModel(terms)

    def observe(self, outputs: Tensor, batch: Batch) -> tuple[float, int, float]:
        """The sum of the cross-entropies, how many tokens there are, and how many of them are the likeliest."""
        return (*self._model.observe(outputs, batch), float(outputs[1]))

    def score(self, observations: Sequence[tuple[float, int, float]]) -> dict[str, float]:
        """The loss in nats per token, its exponential and the share, over everything observed."""
        found = self._model.score([(total, count) for total, count, _ in observations])
        right = sum(number for *_, number in observations)
        return {**found, "token_accuracy": right / found["num_tokens"]}

    def outcomes(self, observations: Sequence[tuple[float, int, float]]) -> Outcomes:  # noqa: ARG002 - as others do
        """The loss of each target is all that is kept."""
        return self._model.outcomes([])
