"""A batch as a person reads it: its tokens, which of them are learned, where documents end, what the labels are."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ted_ds.data.loader import Batch
from ted_ds.numerics.losses import kept_labels

LEGEND = "‹token›: read, not predicted   ║ a document ends   [pad xN]: padding"


def batch_as_text(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, *, token_labels: bool, label_names: Sequence[str], rows: int = 2
) -> list[str]:
    """The first rows of a batch, one line each.

    Args:
        batch: On the CPU.
        tokenizer: Made its tokens.
        token_labels: Whether the labels are next tokens.
        label_names: Names of classes or outputs, otherwise.
        rows: How many.
    """
    return [
        _tokens(batch, row, tokenizer, token_labels)
        + ("" if token_labels else f"  -> {_label(batch, row, label_names)}")
        for row in range(min(rows, len(batch.input_ids)))
    ]


def _tokens(batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase, token_labels: bool) -> str:
    kept = batch.kept_tokens[row].tolist()
    predicted = [False, *kept_labels(batch.labels[row][:-1]).tolist()] if token_labels else kept
    starts = [False] * len(kept)
    if batch.isolated and batch.position_ids is not None:
        starts = [position == 0 and index > 0 for index, position in enumerate(batch.position_ids[row].tolist())]
    parts: list[str] = []
    padding = 0
    for index, token in enumerate(batch.input_ids[row].tolist()):
        if not kept[index]:
            padding += 1
            continue
        parts += [f"[pad x{padding}]"] if padding else []
        padding = 0
        text = str(tokenizer.decode([token]))
        parts.append(
            (" ║ " if starts[index] and any(kept[:index]) else "") + (text if predicted[index] else f"‹{text}›")
        )
    parts += [f"[pad x{padding}]"] if padding else []
    return repr("".join(parts))[1:-1]


def _label(batch: Batch, row: int, names: Sequence[str]) -> str:
    label = batch.labels[row]
    if not kept_labels(label).all():
        return "ignored"
    if label.is_floating_point():
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, label.tolist(), strict=True))
    return names[int(label)]
