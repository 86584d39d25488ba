"""Where in a text the answer to a question stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ted_ds.config.section import rule
from ted_ds.config.tasks.base import HeadSection


class QuestionAnswering(HeadSection):
    """The words of a context that answer a question about it: SQuAD, and what has its form.

    Defaults are those of TED's own script for SQuAD.
    """

    architecture: ClassVar[str] = "QuestionAnswering"
    pooled: ClassVar[bool] = False
    predicts_spans: ClassVar[bool] = True
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("lm_head", "pooling")
    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match", "loss")
    not_by_sums: ClassVar[tuple[str, ...]] = ("loss",)  # that is of windows, of which a question may have several
    why_not_cached: ClassVar[str | None] = (
        "a cache keeps one prediction for each text, and a question_answering has two for each token; remove it"
    )
    kind: Literal["question_answering"]
    rows: Literal["columns", "articles"] = "columns"
    """``columns``: a row has one question. ``articles``: it is one of SQuAD's own articles, with all its ``paragraphs``
    and their questions; these are the list under ``data`` in SQuAD's files (``field: data`` of a source)."""
    question_column: str = "question"
    """Column with the question."""
    context_column: str = "context"
    """Column with the text that the answer stands in."""
    answers_column: str = "answers"
    """Column with ``{text: [...], answer_start: [...]}``, or with a list of such answers: right answers, each with the
    place of its first character in the context. It learns from the first, and is scored by the one that fits best.
    Nothing where a row has no label; empty lists where nothing in the context is an answer."""
    id_column: str | None = None
    """Column with what a question is called in ``predictions.json`` (in ``articles``, its ``id`` there); unset, and for
    one that has none: its number among those that are scored, from 0."""
    max_length: int = Field(default=384, gt=1)
    """Tokens of a question and a part of its context; longer contexts are read in several parts."""
    stride: int = Field(default=128, ge=0)
    """Tokens that two parts next to each other have in common."""
    no_answer: bool = False
    """Whether a question may have no answer, as in SQuAD 2.0; else one without is without a label."""
    null_threshold: float = Field(default=0.0, allow_inf_nan=False)
    """``no_answer``: by how much its score must exceed that of the best answer for none to be given."""
    n_best: int = Field(default=20, ge=1)
    """So many of a part's likeliest starts are tried, each with as many ends."""
    max_answer_length: int = Field(default=30, ge=1)
    """Longest answer in tokens."""

    @rule
    def _columns_are_of_rows(self) -> Iterator[str]:
        names = ("question_column", "context_column", "answers_column")
        given = [name for name in (*names, "id_column") if name in self.model_fields_set]
        if self.rows == "articles" and given:
            yield f"rows: articles has no columns with names of your own; remove {' and '.join(given)}"
        if len({getattr(self, name) for name in names}) < len(names):
            yield f"{', '.join(names)} must be three columns, got {[getattr(self, name) for name in names]}"

    @rule
    def _windows_move_on(self) -> Iterator[str]:
        if self.stride >= self.max_length:
            yield (
                f"stride: {self.stride} tokens of a part come again in the next, of at most {self.max_length} with the "
                "question; give less than max_length"
            )

    @rule
    def _threshold_has_an_effect(self) -> Iterator[str]:
        if "null_threshold" in self.model_fields_set and not self.no_answer:
            yield "null_threshold has no effect without no_answer: true; remove it"

    @property
    def takes_pairs(self) -> bool:
        """A question and a context always do."""
        return True

    @property
    def sequences(self) -> Literal["one", "more", "fewer"]:
        """A context may be read in several parts."""
        return "more"

    @property
    def num_outputs(self) -> int:
        """Of each token: how likely the answer starts, and ends, there."""
        return 2

    def probe_sizes(self, dim: int) -> list[int]:
        """Numbers in the weight and the bias of a linear head."""
        return [dim * self.num_outputs, self.num_outputs]
