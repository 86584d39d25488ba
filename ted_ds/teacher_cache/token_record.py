"""What is kept of a sequence whose tokens are predicted by an LM head."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ted_ds.numerics.kept_top import Kept
from ted_ds.planning.cache_size import ID_BYTES, LOG_BYTES, REST_BYTES, TokenSizes, num_planes
from ted_ds.teacher_cache.states import as_bytes, pack_states, size_of_states, unpack_states
from ted_ds.teacher_cache.store import ALIGNMENT, aligned, padded

HEAD = struct.Struct("<IIfI")
"""How many tokens are predicted and how many have states, the teacher's own task loss, and a checksum of the tokens."""


class Answer(NamedTuple):
    """What the teacher says of a sequence."""

    ids: Int[Tensor, "predicted kept"]
    """Of the most probable next tokens, wherever the prediction term runs over one."""
    logs: Float[Tensor, "predicted kept_and_rest"]
    """Logs of their probabilities, and of that of all others."""
    states: Float[Tensor, "layers matched dim"]
    """Filtered ones, wherever states are compared."""
    task_loss: float
    """Summed over its labels."""
    tokens: int
    """See :func:`checksum`."""


def checksum(ids: Sequence[int] | Tensor) -> int:
    """Of a sequence's tokens, by which a record of another sequence is found out."""
    return zlib.crc32(np.asarray(ids, np.int64).tobytes())


@dataclass(frozen=True)
class TokenRecord(TokenSizes):
    """Ids in as many bits as they need, the logs of their probabilities in fp16, that of the rest in fp32."""

    def num_bytes(self, tokens: int) -> int:
        """At most, of a sequence of so many tokens, in the file."""
        return aligned(int(HEAD.size + tokens * (self.of_prediction + self.of_states)) + 3 * ALIGNMENT)

    def rounded(self, kept: Kept) -> Kept:
        """What was kept, as it is read again."""
        nothing = torch.zeros(self.num_layers, 0, self.dim)
        packed = self.pack(Answer(kept.ids, kept.logs, nothing, 0.0, 0))
        answer = self.unpack(np.frombuffer(packed, np.uint8))
        return Kept(answer.ids.to(kept.ids.device), answer.logs.to(kept.logs), kept.losses)

    def pack(self, answer: Answer) -> bytes:
        """The record of a sequence."""
        head = HEAD.pack(len(answer.ids), answer.states.shape[1], answer.task_loss, answer.tokens)
        parts = [head]
        if self.num_kept:
            ids = answer.ids.cpu().numpy()
            parts.append((ids & 0xFFFF).astype(np.uint16).tobytes())
            parts += [np.packbits(ids >> (8 * ID_BYTES + plane) & 1).tobytes() for plane in range(self._planes)]
            parts = [
                padded(b"".join(parts)),
                as_bytes(answer.logs[:, :-1].half()),
                as_bytes(answer.logs[:, -1].float()),
            ]
        whole = padded(b"".join(parts))
        return padded(whole + pack_states(answer.states, self.precision)) if self.num_layers else whole

    def unpack(self, record: np.ndarray[Any, Any]) -> Answer:
        """What :meth:`pack` was given, rounded; the probabilities of each prediction add up to 1."""
        num_predicted, num_states, task_loss, tokens = HEAD.unpack(record[: HEAD.size].tobytes())
        end = HEAD.size
        ids, logs = torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 1)
        if self.num_kept:
            count = num_predicted * self.num_kept
            low, end = _cut(record, end, count * ID_BYTES)
            whole = low.view(np.uint16).astype(np.int64)
            for plane in range(self._planes):
                bits, end = _cut(record, end, -(-count // 8))
                whole |= np.unpackbits(bits, count=count).astype(np.int64) << (8 * ID_BYTES + plane)
            ids = torch.from_numpy(whole).reshape(num_predicted, self.num_kept)
            top, end = _cut(record, aligned(end), count * LOG_BYTES)
            rest, end = _cut(record, end, num_predicted * REST_BYTES)
            top = torch.from_numpy(top.view(np.float16).astype(np.float32)).reshape(num_predicted, self.num_kept)
            logs = torch.cat([top, torch.from_numpy(rest.view(np.float32).copy())[:, None]], -1)
            logs -= logs.logsumexp(-1, keepdim=True)
        shape = (self.num_layers, num_states, self.dim)
        stored, _ = _cut(record, aligned(end), size_of_states(shape, self.precision))
        return Answer(ids, logs, unpack_states(stored, shape, self.precision), task_loss, tokens)

    @property
    def _planes(self) -> int:
        return num_planes(self.num_ids)


def _cut(record: np.ndarray[Any, Any], start: int, size: int) -> tuple[np.ndarray[Any, Any], int]:
    """So many bytes, and where they end."""
    return record[start : start + size], start + size
