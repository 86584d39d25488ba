"""Tokens of a batch as a person reads them: which of them are learned, and where documents end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ted_ds.data.loader import Batch

MOST_TOKENS = 256
"""Of a row, that are shown."""
LEGEND = "‹token›: read, not predicted   ║ a document ends   [pad xN]: padding"


def shown_tokens(
    batch: Batch,
    row: int,
    tokenizer: PreTrainedTokenizerBase,
    predicted: Sequence[bool],
    labels: Mapping[int, str] = {},
) -> str:
    """The tokens of a row, in marks that :data:`LEGEND` tells.

    Args:
        batch: On the CPU.
        row: Of it.
        tokenizer: Made its tokens.
        predicted: Which of its tokens are predicted, or read for a prediction that counts.
        labels: What to say behind some of them, by their place in the row.
    """
    kept = batch.kept_tokens[row].tolist()
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
        parts += [f"[{labels[index]}]"] if index in labels else []
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
