"""Rows of isolated documents as one long row, for attention that is told where documents begin.

Transformers hands flash attention the borders of documents only where a batch has one row, and finds them by where
positions start again, as each row's do; in a batch of several rows documents would see those before them, unnoticed.
(Its masks for other kinds of attention know documents in every row.) It would look for them on the device, in each
block anew, and wait for what it finds: so borders that are known go along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ted_ds.models.document_attention import takes_borders
from ted_ds.models.document_mask import DOCUMENTS, Documents, mask_of_documents


@dataclass(frozen=True)
class Rows:
    """How a batch goes into the model and comes out of it."""

    num_rows: int = 1
    """How many are joined; 1 for none."""

    def join(self, value: Any) -> Any:
        """``[batch, seq, ...]`` as ``[1, batch * seq, ...]``; what is no tensor stays."""
        return value.flatten(0, 1).unsqueeze(0) if self.num_rows > 1 and isinstance(value, Tensor) else value

    def part(self, value: Tensor) -> Tensor:
        """``[1, batch * seq, ...]`` as ``[batch, seq, ...]``."""
        return value.unflatten(1, (self.num_rows, -1)).squeeze(0) if self.num_rows > 1 else value


def keep_apart(
    arguments: Mapping[str, Any], model: PreTrainedModel, *, finds_documents: bool
) -> tuple[Rows, dict[str, Any]]:
    """Have a model's attention keep the isolated documents of a batch apart.

    Args:
        arguments: What the model is given. Documents are isolated where positions go without a mask.
        model: Whose attention it is.
        finds_documents: Whether masks that transformers makes for it keep them apart.

    Returns:
        How rows go through the model, and what it is given then.
    """
    plain = {name: value for name, value in arguments.items() if name != DOCUMENTS}
    if "attention_mask" in plain or "position_ids" not in plain:
        return Rows(), plain
    attention, ids = str(model.config._attn_implementation), plain["input_ids"]
    by_borders = takes_borders(attention, ids.device, model.dtype)
    if not by_borders and "flash" not in attention:
        return Rows(), plain if finds_documents else {**plain, **mask_of_documents(plain, model.dtype)}
    given = arguments.get(DOCUMENTS)
    documents = Documents.of(plain["position_ids"]) if given is None else Documents.from_tensor(given)
    rows = Rows(len(ids))
    joined = {name: rows.join(value) for name, value in plain.items()}
    if by_borders:
        return rows, {**joined, "attention_mask": documents.as_tensor}
    return rows, {
        **joined,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), documents.borders),
        **dict.fromkeys(("max_length_q", "max_length_k"), documents.longest),
    }
