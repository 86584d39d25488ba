"""The data of tasks with one prediction for a text, where each model reads by a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ted_ds.config.data import Data
from ted_ds.data.reading.listing import DataListing
from ted_ds.tasks.base import HeadKind
from ted_ds.tasks.kind import AnyKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.labelled_data import LabelledData


def open_for_both(
    kind: AnyKind,
    data: Data,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    listing: DataListing,
    *,
    max_heldout: int,
) -> LabelledData:
    """A labelled set, of which the student's and the teacher's tokenizer read every text.

    Raises:
        DataError: See :meth:`ted_ds.tasks.base.TaskKind.open_data`.
    """
    from ted_ds.data.labelled_data import LabelledData

    assert isinstance(kind, HeadKind)
    assert kind.task.pooled, "the tokens of two tokenizers do not pair"
    return LabelledData(
        data,
        kind,
        tokenizers["student"],
        listing,
        max_heldout=max_heldout,
        teacher_tokenizer=tokenizers["teacher"],
    )
