"""What is kept of a sequence whose tokens are predicted by an LM head."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ted_ds.numerics.keeping import Kept
from ted_ds.planning.cache_size import TokenSizes
from ted_ds.teacher_cache.packed_predictions import pack_drawn, pack_top, unpack_drawn, unpack_top
from ted_ds.teacher_cache.parts import ALIGNMENT
from ted_ds.teacher_cache.states import pack_states, size_of_states, unpack_states
from ted_ds.teacher_cache.store import aligned, padded

HEAD = struct.Struct("<IIfI")
"""How many tokens are predicted and how many have states, the teacher's own task loss, and a checksum of the tokens."""


class Answer(NamedTuple):
    """What the teacher says of a sequence."""

    ids: Int[Tensor, "predicted kept"]
    """Of tokens, wherever the prediction term runs over one."""
    numbers: Float[Tensor, "predicted kept_and_one"]
    """See :class:`ted_ds.numerics.keeping.Kept`."""
    states: Float[Tensor, "layers matched dim"]
    """Filtered ones, wherever states are compared."""
    task_loss: float
    """Summed over its labels."""
    tokens: int
    """See :func:`ted_ds.data.loader.checksum`."""


@dataclass(frozen=True)
class TokenRecord(TokenSizes):
    """A head, predictions, and states."""

    def num_bytes(self, tokens: int, predicted_share: float = 1.0) -> int:
        """Of a sequence of so many tokens in the file; at most, where all are predicted and matched."""
        of_tokens = tokens * (self.of_prediction * predicted_share + self.of_states)
        return aligned(int(HEAD.size + of_tokens) + 3 * ALIGNMENT)

    def rounded(self, kept: Kept) -> Kept:
        """What was kept, as it is read again."""
        nothing = torch.zeros(self.num_layers, 0, self.dim)
        packed = self.pack(Answer(kept.ids, kept.numbers, nothing, 0.0, 0))
        answer = self.unpack(np.frombuffer(packed, np.uint8))
        return Kept(answer.ids.to(kept.ids.device), answer.numbers.to(kept.numbers), kept.losses)

    def pack(self, answer: Answer) -> bytes:
        """The record of a sequence."""
        whole = HEAD.pack(len(answer.ids), answer.states.shape[1], answer.task_loss, answer.tokens)
        if self.num_kept:
            pack_predictions = pack_drawn if self.drawn else pack_top
            whole = padded(whole + pack_predictions(self, answer.ids, answer.numbers))
        return padded(whole + pack_states(answer.states, self.precision)) if self.num_layers else whole

    def unpack(self, record: np.ndarray[Any, Any]) -> Answer:
        """What :meth:`pack` was given, rounded."""
        num_predicted, num_states, task_loss, tokens = HEAD.unpack(record[: HEAD.size].tobytes())
        ids, numbers, end = torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 1), HEAD.size
        if self.num_kept:
            unpack_predictions = unpack_drawn if self.drawn else unpack_top
            ids, numbers, end = unpack_predictions(self, record, end, num_predicted)
        shape = (self.num_layers, num_states, self.dim)
        start = aligned(end)
        stored = record[start : start + size_of_states(shape, self.precision)]
        return Answer(ids, numbers, unpack_states(stored, shape, self.precision), task_loss, tokens)
