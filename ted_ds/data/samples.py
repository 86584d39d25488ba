"""What a model is trained on, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ted_ds.data.labels import Label


@dataclass(frozen=True)
class Sample:
    """One sequence."""

    input_ids: list[int]
    label: Label | None = None
    """None where the labels are the tokens themselves."""
    document_lengths: Sequence[int] = ()
    """Tokens of each document in a packed sequence."""
    index: int = -1
    """Its place in a labelled training set; -1 elsewhere."""
