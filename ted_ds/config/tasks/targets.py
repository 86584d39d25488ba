"""A text to be written from another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import rule
from ted_ds.config.tasks.base import TaskSection


class Seq2Seq(TaskSection):
    """Translation, summaries, answers: an encoder-decoder reads a source and writes a target, token by token."""

    architecture: ClassVar[str] = "Seq2SeqLM"
    has_lm_head: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    length_key: ClassVar[str] = "max_source_length or max_target_length"
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("pooling",)
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "token_accuracy", "loss")
    not_by_sums: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    why_not_cached: ClassVar[str | None] = (
        "a cache keeps one prediction for each text, and a seq2seq has one for each token of a target; remove it"
    )
    why_no_transfer: ClassVar[str | None] = (
        "a seq2seq learns from the teacher at tokens of targets, and none of these is read; remove it"
    )
    why_no_ridge: ClassVar[str | None] = (
        "what a seq2seq's encoder puts out is read by its decoder's attention, and no head reads it as it is; use "
        "normal or identity"
    )
    kind: Literal["seq2seq"]
    source_column: str = "source"
    """Column with the text that is read."""
    target_column: str = "target"
    """Column with the text that is to be written."""
    prefix: str = ""
    """Put before each source: what tells a T5 what to do (``"summarize: "``)."""
    max_source_length: int = Field(default=512, gt=1)
    """Longest source in tokens, with the prefix; longer ones are cut."""
    max_target_length: int = Field(default=128, gt=1)
    """Longest target in tokens; longer ones are cut."""

    @rule
    def _columns_differ(self) -> Iterator[str]:
        if self.source_column == self.target_column:
            yield f"source_column and target_column must be two columns, got {self.source_column!r} twice"

    @property
    def text_columns(self) -> list[str]:
        """The source's; targets are no texts that the encoder reads."""
        return [self.source_column]

    @property
    def document_column(self) -> str | None:
        """Sources."""
        return self.source_column

    @property
    def sequence_length(self) -> int:
        """Longest sequence that a stack of the models will see, in tokens."""
        return max(self.max_source_length, self.max_target_length)
