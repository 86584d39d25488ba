"""Attention of isolated documents one by one, in the place of a mask over whole rows.

A mask keeps a GPU from its fastest kernels, and costs time and memory for all pairs of tokens of a row. Here rows go
through the model as one (:mod:`ted_ds.models.joined_rows`), and attention is told where documents begin. On a GPU, in
16 bits, torch's own flash kernel for sequences of many lengths takes these borders; elsewhere documents of one length
are computed together. Other batches, and precisions that the kernel does not know, go the way of ``sdpa``, masks and
all.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ted_ds.models.document_mask import Documents

NAME = "ted_ds_packed"
"""To transformers."""
OF_THE_KERNEL = (torch.bfloat16, torch.float16)
FIRST_CAPABILITY = (8, 0)
"""Of a GPU that the kernel runs on: Ampere's."""
TILE = 8
"""The width of a head is a multiple of this to the kernel."""


def takes_borders(attention: str | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model of this attention (transformers' name) gets borders of documents, and no mask."""
    return attention == NAME and why_by_masks(device, dtype) is None


def why_by_masks(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why documents are kept apart by masks on a device all the same, in words; None where borders do it."""
    if device.type != "cuda":
        return None
    if dtype not in OF_THE_KERNEL:
        return "the kernel computes in 16 bits"
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return "the kernel runs on GPUs from Ampere on"
    return None if _has_kernel() else f"torch {torch.__version__} has no kernel with windows and grouped heads"


@functools.cache
def _has_kernel() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface of attention: ``[batch, heads, seq, width]`` of each, and ``[batch, seq, heads, width]``.

    Args:
        module: The block's attention.
        query: What attends.
        key: What is attended to; of as many heads, or of fewer, each for as many others.
        value: What is found there, likewise.
        attention_mask: :attr:`~ted_ds.models.document_mask.Documents.as_tensor` of rows joined to one; or a mask, as
            ``sdpa`` takes it.
        dropout: The share of weights to drop, with a mask; with borders none is.
        scaling: Of scores; None for that of their width.
        more: ``sliding_window``: how many tokens each sees at most, itself included.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        plain: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return plain
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    assert not unknown, f"attention: packed knows no {unknown} of a {type(module).__name__}"
    assert not dropout, "attention: packed drops nothing"
    documents = Documents.from_tensor(attention_mask)
    window: int | None = more.get("sliding_window")
    query, key, value = (one.squeeze(0).transpose(0, 1) for one in (query, key, value))
    attend = _by_kernel if query.device.type == "cuda" else _by_length
    return attend(query, key, value, documents, scaling, window).unsqueeze(0), None


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None, window: int | None
) -> Tensor:
    """All documents at once, ``[tokens, heads, width]``."""
    from torch.nn.attention.varlen import varlen_attn  # newer than the oldest torch we run on

    width = query.shape[-1]
    found: Any = varlen_attn(
        in_tiles(query).contiguous(),
        in_tiles(key).contiguous(),
        in_tiles(value).contiguous(),
        documents.borders,
        documents.borders,
        documents.longest,
        documents.longest,
        scale=width**-0.5 if scaling is None else scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return found[..., :width]


def in_tiles(heads: Tensor) -> Tensor:
    """``[..., width]`` as wide as the kernel wants it: with numbers of 0, which add nothing to any product."""
    return F.pad(heads, (0, -heads.shape[-1] % TILE))


def _by_length(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None, window: int | None
) -> Tensor:
    """Documents of one length together, ``[tokens, heads, width]``."""
    lengths = documents.borders.diff()
    first = documents.borders[:-1].long()
    places, found = [], []
    for length in lengths.unique().tolist():
        rows = first[lengths == length, None] + torch.arange(length)
        seen = None
        if window is not None and window < length:
            seen = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
        own, keys, values = (one[rows].transpose(1, 2) for one in (query, key, value))
        attended = F.scaled_dot_product_attention(
            own,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None,
            scale=scaling,
            enable_gqa=keys.shape[1] != own.shape[1],
        )
        found.append(attended.transpose(1, 2).flatten(0, 1))
        places.append(rows.flatten())
    return torch.cat(found)[torch.cat(places).argsort()]


def register() -> str:
    """Make it known to transformers; returns its name there."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
