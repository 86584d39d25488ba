"""A batch as a person reads it: its tokens, which of them are learned, where documents end, what the labels are."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ted_ds.data.loader import Batch
from ted_ds.numerics.losses import kept_labels
from ted_ds.tasks.kind import AnyKind
from ted_ds.tasks.shown import LEGEND

MOST_ROWS = 2
"""Of a batch, that are shown."""


def first_batch(batch: Batch, tokenizer: PreTrainedTokenizerBase, kind: AnyKind) -> list[str]:
    """Lines on a batch: how much of it is learned, its first rows, and how to read them.

    Args:
        batch: On the CPU.
        tokenizer: Made its tokens.
        kind: Says what the labels are.
    """
    kept, tokens = int(kept_labels(batch.labels).sum()), int(batch.kept_tokens.sum())
    rows = [kind.show_row(batch, row, tokenizer) for row in range(min(MOST_ROWS, len(batch.input_ids)))]
    heading = f"first microbatch: {tokens} tokens, {kept} labels kept of {batch.labels.numel()}"
    return [heading, *(f"  {line}" for line in [*rows, LEGEND])]
