"""One prediction for each token of documents, by the LM head."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import Section
from ted_ds.config.tasks.base import BosSetting, TaskSection


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
    why_no_transfer: ClassVar[str | None] = (
        "the documents of a causal_lm have no labels anyway; give these sources under data.train, with a weight"
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
