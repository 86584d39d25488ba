"""Predictions of tokens as bytes: ids in as many bits as they need, and a number for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ted_ds.planning.cache_size import COUNT_BYTES, ID_BYTES, LOG_BYTES, REST_BYTES, TokenSizes, num_planes
from ted_ds.teacher_cache.store import aligned, padded

Bytes = np.ndarray[Any, Any]


def pack_top(sizes: TokenSizes, ids: Tensor, numbers: Tensor) -> bytes:
    """The most probable ids and the logs of their probabilities in fp16, that of the rest in fp32."""
    logs = numbers.cpu().numpy()
    return _pack_ids(sizes, ids.cpu().numpy()) + logs[:, :-1].astype(np.float16).tobytes() + _last(logs)


def unpack_top(sizes: TokenSizes, record: Bytes, start: int, num_rows: int) -> tuple[Tensor, Tensor, int]:
    """Ids, logs, and where they end; the probabilities of each row add up to 1."""
    ids, start = _unpack_ids(sizes, record, start, num_rows * sizes.num_kept)
    top, start = _cut(record, start, ids.size * LOG_BYTES)
    rest, start = _cut(record, start, num_rows * REST_BYTES)
    logs = np.empty((num_rows, sizes.num_kept + 1), np.float32)
    logs[:, :-1] = top.view(np.float16).reshape(num_rows, sizes.num_kept)
    logs[:, -1] = rest.view(np.float32)
    found = torch.from_numpy(logs)
    found -= found.logsumexp(-1, keepdim=True)
    return torch.from_numpy(ids).reshape(num_rows, sizes.num_kept), found, start


def pack_drawn(sizes: TokenSizes, ids: Tensor, numbers: Tensor) -> bytes:
    """How many ids of each row were drawn, these, how often each was, and the entropies in fp32."""
    counts = numbers[:, :-1].cpu().numpy()
    is_drawn = counts > 0
    how_many, how_often = is_drawn.sum(-1).astype(np.uint16), counts[is_drawn].astype(np.uint16)
    drawn = _pack_ids(sizes, ids.cpu().numpy()[is_drawn])
    return padded(how_many.tobytes()) + drawn + how_often.tobytes() + _last(numbers.cpu().numpy())


def unpack_drawn(sizes: TokenSizes, record: Bytes, start: int, num_rows: int) -> tuple[Tensor, Tensor, int]:
    """Ids, counts with the entropies, as wide as the row of which most were drawn, and where they end."""
    how_many, start = _cut(record, start, num_rows * COUNT_BYTES)
    of_row = how_many.view(np.uint16).astype(np.int64)
    num_drawn, widest = int(of_row.sum()), int(of_row.max(initial=0))
    drawn, start = _unpack_ids(sizes, record, aligned(start), num_drawn)
    how_often, start = _cut(record, start, num_drawn * COUNT_BYTES)
    entropies, start = _cut(record, start, num_rows * REST_BYTES)
    is_drawn = np.arange(widest) < of_row[:, None]
    ids, numbers = np.zeros((num_rows, widest), np.int64), np.zeros((num_rows, widest + 1), np.float32)
    ids[is_drawn], numbers[:, :-1][is_drawn] = drawn, how_often.view(np.uint16)
    numbers[:, -1] = entropies.view(np.float32)
    return torch.from_numpy(ids), torch.from_numpy(numbers), start


def _pack_ids(sizes: TokenSizes, ids: Bytes) -> bytes:
    """The 16 lowest bits of each, then its other bits, those of all ids together."""
    planes = [np.packbits(ids >> (8 * ID_BYTES + plane) & 1).tobytes() for plane in range(num_planes(sizes.num_ids))]
    return padded((ids & 0xFFFF).astype(np.uint16).tobytes() + b"".join(planes))


def _unpack_ids(sizes: TokenSizes, record: Bytes, start: int, count: int) -> tuple[Bytes, int]:
    low, end = _cut(record, start, count * ID_BYTES)
    ids = low.view(np.uint16).astype(np.int64)
    for plane in range(num_planes(sizes.num_ids)):
        bits, end = _cut(record, end, -(-count // 8))
        ids |= np.unpackbits(bits, count=count).astype(np.int64) << (8 * ID_BYTES + plane)
    return ids, aligned(end)


def _last(numbers: Bytes) -> bytes:
    return numbers[:, -1].astype(np.float32).tobytes()


def _cut(record: Bytes, start: int, size: int) -> tuple[Bytes, int]:
    """So many bytes, and where they end."""
    return record[start : start + size], start + size
