"""A prediction for each of some tokens of documents, by the LM head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import Section, rule
from ted_ds.config.tasks.base import BosSetting, TaskSection
from ted_ds.config.tasks.masking import Masking


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


class SharedPacking(Packing):
    """How documents share a sequence that is read in both directions."""

    isolate_documents: bool = False
    """They are not kept apart: an encoder's attention goes over the whole sequence."""

    @rule
    def _an_encoder_reads_all(self) -> Iterator[str]:
        if self.isolate_documents:
            yield (
                "isolate_documents: true: an encoder's attention goes over the whole sequence and cannot keep its "
                "documents apart; remove it (method: best_fit cuts fewer of them)"
            )


class DocumentTask(TaskSection):
    """Documents, packed into sequences; predictions for tokens of them, by an LM head."""

    has_lm_head: ClassVar[bool] = True
    packed: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    length_key: ClassVar[str] = "sequence_length"
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("pooling",)
    sequence_length: int = Field(default=1024, gt=1)
    """Tokens per packed sequence."""
    text_column: str = "text"
    """Column with a document."""
    packing: Packing = Packing()

    @property
    def isolates_documents(self) -> bool:
        """Whether documents that share a sequence are kept apart."""
        return self.packing.isolate_documents

    @property
    def place_of_isolation(self) -> str:
        """The key of the recipe that says so."""
        return "task.packing.isolate_documents"

    @property
    def without_isolation(self) -> str:
        """What to do where that cannot be."""
        return "set it to false"


class CausalLm(DocumentTask):
    """Continual pre-training: next-token prediction on packed documents."""

    architecture: ClassVar[str] = "CausalLM"
    predicts_next_token: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-4
    why_no_transfer: ClassVar[str | None] = (
        "the documents of a causal_lm have no labels anyway; give these sources under data.train, with a weight"
    )
    kind: Literal["causal_lm"]
    bos: BosSetting = "auto"
    """Whether each document starts with the tokenizer's BOS token: ``auto`` puts before it what the tokenizer's own
    ``encode`` puts before a text (nothing, with many). What a cut document goes on with starts with no such token."""

    @property
    def document_start(self) -> BosSetting:
        """Whether documents start with the BOS token."""
        return self.bos


class MaskedLm(DocumentTask):
    """Continual pre-training of an encoder: prediction of tokens that it does not see, in packed documents."""

    architecture: ClassVar[str] = "MaskedLM"
    new_lm_head: ClassVar[bool] = True
    own_document_ends: ClassVar[bool] = True
    of_distillation: ClassVar[tuple[str, ...]] = ("kl_on",)
    kind: Literal["masked_lm"]
    sequence_length: int = Field(default=512, gt=1)
    """Tokens per packed sequence."""
    packing: SharedPacking = SharedPacking()  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    masking: Masking = Masking()
    kl_on: Literal["masked", "all"] = "masked"
    """Which tokens the prediction term runs over: masked ones, as the task term, or all but padding, which costs so
    many more logits of both models."""

    @property
    def document_start(self) -> BosSetting:
        """What the tokenizer's own encode puts before a text."""
        return "auto"

    @property
    def masked(self) -> Masking:
        """Which are masked."""
        return self.masking

    @property
    def predicted_share(self) -> float:
        """The masked ones, where no others are."""
        return self.masking.probability if self.kl_on == "masked" else 1.0
