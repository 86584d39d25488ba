"""Rows of isolated documents as one long row.

Transformers hands flash attention the borders of documents only where a batch has one row, and finds them by where
positions start again, as each row's do; in a batch of several rows documents would see those before them, unnoticed.
(Its masks for other kinds of attention know documents in every row.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """How a batch goes into the model and comes out of it."""

    num_rows: int = 1
    """How many are joined; 1 for none."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any], attention: str | None) -> Rows:
        """Those of what a model is given, by the attention it has (transformers' name)."""
        needs_one_row = "attention_mask" not in arguments and "position_ids" in arguments and "flash" in str(attention)
        return cls(len(arguments["input_ids"]) if needs_one_row else 1)

    def join(self, value: Any) -> Any:
        """``[batch, seq, ...]`` as ``[1, batch * seq, ...]``; what is no tensor stays."""
        return value.flatten(0, 1).unsqueeze(0) if self.num_rows > 1 and isinstance(value, Tensor) else value

    def part(self, value: Tensor) -> Tensor:
        """``[1, batch * seq, ...]`` as ``[batch, seq, ...]``."""
        return value.unflatten(1, (self.num_rows, -1)).squeeze(0) if self.num_rows > 1 else value
