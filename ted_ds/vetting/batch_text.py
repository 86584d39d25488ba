"""A batch as a person reads it: its tokens, which of them are learned, where documents end, what the labels are."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ted_ds.config.tasks import CausalLm, Regression, Task
from ted_ds.data.loader import Batch
from ted_ds.numerics.losses import kept_labels

MOST_ROWS = 2
"""Of a batch, that are shown."""
MOST_TOKENS = 256
"""Of a row, that are shown."""
LEGEND = "‹token›: read, not predicted   ║ a document ends   [pad xN]: padding"


def first_batch(batch: Batch, tokenizer: PreTrainedTokenizerBase, task: Task) -> list[str]:
    """Lines on a batch: how much of it is learned, its first rows, and how to read them.

    Args:
        batch: On the CPU.
        tokenizer: Made its tokens.
        task: Says what the labels are.
    """
    token_labels = isinstance(task, CausalLm)
    label_names = task.target_columns if isinstance(task, Regression) else getattr(task, "labels", [])
    kept, tokens = int(kept_labels(batch.labels).sum()), int(batch.kept_tokens.sum())
    rows = [
        _tokens(batch, row, tokenizer, token_labels)
        + ("" if token_labels else f"  -> {_label(batch, row, label_names)}")
        for row in range(min(MOST_ROWS, len(batch.input_ids)))
    ]
    heading = f"first microbatch: {tokens} tokens, {kept} labels kept of {batch.labels.numel()}"
    return [heading, *(f"  {line}" for line in [*rows, LEGEND])]


def _tokens(batch: Batch, row: int, tokenizer: PreTrainedTokenizerBase, token_labels: bool) -> str:
    kept = batch.kept_tokens[row].tolist()
    predicted = [False, *kept_labels(batch.labels[row][:-1]).tolist()] if token_labels else kept
    starts = [False] * len(kept)
    if batch.isolated and batch.position_ids is not None:
        starts = [position == 0 and index > 0 for index, position in enumerate(batch.position_ids[row].tolist())]
    shown = [index for index, one in enumerate(kept) if one][:MOST_TOKENS]
    texts = dict(zip(shown, _texts(batch.input_ids[row][shown].tolist(), tokenizer), strict=True))
    before = kept.index(True) if True in kept else len(kept)
    after = len(kept) - sum(kept) - before
    parts = [f"[pad x{before}]"] if before else []
    for index in shown:
        parts += [" ║ "] if starts[index] and index != shown[0] else []
        parts.append(texts[index] if predicted[index] else f"‹{texts[index]}›")
    parts += ["…"] if len(shown) < sum(kept) else []
    parts += [f"[pad x{after}]"] if after else []
    return repr("".join(parts))[1:-1]


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to the text: on its own, a token does not show the space before it."""
    texts: list[str] = []
    whole = ""
    for count in range(1, len(ids) + 1):
        longer = str(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False))
        grew = longer.startswith(whole)
        texts.append(longer[len(whole) :] if grew else str(tokenizer.decode(ids[count - 1 : count])))
        whole = longer
    return texts


def _label(batch: Batch, row: int, names: Sequence[str]) -> str:
    label = batch.labels[row]
    if not kept_labels(label).all():
        return "ignored"
    if label.is_floating_point():
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, label.tolist(), strict=True))
    return names[int(label)]
