"""One prediction for each word of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from ted_ds.config.section import rule
from ted_ds.config.tasks.base import OneOfLabels

SPAN_LABEL = re.compile(r"O|([BIES])(?:-(.*))?")
"""``O`` for none, else how a word stands in an entity, and the entity's type."""


class TokenClassification(OneOfLabels):
    """A label for each word of a text: entities, parts of speech."""

    architecture: ClassVar[str] = "TokenClassification"
    pooled: ClassVar[bool] = False
    unused_filter_settings: ClassVar[tuple[str, ...]] = ("lm_head", "pooling")
    metrics: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy", "loss")
    why_not_cached: ClassVar[str | None] = (
        "a cache keeps one prediction for each text, and a token_classification has one for each word; remove it"
    )
    why_no_transfer: ClassVar[str | None] = (
        "a token_classification learns from the teacher at words with a label, and none of these is read; remove it"
    )
    kind: Literal["token_classification"]
    rows: Literal["lists", "conll"] = "lists"
    """``lists``: a row has a list of words, and one of labels. ``conll``: it is the lines of a sentence, each with a
    word in its first column and a label in its last; white space is between columns, and a blank line between
    sentences, in text sources with ``documents: block``."""
    words_column: str = "tokens"
    """Column with a list of words."""
    label_column: str = "ner_tags"
    """Column with the labels' names or ids; nothing, or -100, for a word that has none."""
    label_on: Literal["first", "all"] | None = None
    """Of a word that is several tokens: ``all`` of them have its label, and count in the losses; unset or ``first``:
    the first alone. Scores are by word either way: what is predicted at its first token."""

    @rule
    def _columns_are_of_lists(self) -> Iterator[str]:
        given = [name for name in ("words_column", "label_column") if name in self.model_fields_set]
        if self.rows == "conll" and given:
            yield f"rows: conll has no columns with names; remove {' and '.join(given)}"

    @property
    def possible_headlines(self) -> tuple[str, ...]:
        """Those of whole entities only where labels mark some."""
        return self.metrics if all(map(SPAN_LABEL.fullmatch, self.labels)) else ("accuracy", "loss")

    def probe_sizes(self, dim: int) -> list[int]:
        """Numbers in the weight and the bias of a linear head."""
        return [dim * self.num_outputs, self.num_outputs]
