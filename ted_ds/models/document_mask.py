"""Isolated documents of a batch, as attention is told of them: by a mask over rows, or by where each begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

DOCUMENTS = "documents"
"""The name of :attr:`Documents.as_tensor` among what a tapped model is given."""


def _starts(position_ids: Int[Tensor, "batch seq"]) -> Tensor:
    """True where a document begins: at the first place of a row, and where positions do not go on."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    return starts


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch begin, its rows taken one after the other."""

    borders: Int[Tensor, " documents_and_1"]
    """First places, and at last the number of all places; 32-bit integers, as kernels want them."""
    longest: int
    """Places of the longest one."""

    @classmethod
    def of(cls, position_ids: Int[Tensor, "batch seq"]) -> Documents:
        """Those of positions that start again with each document. Waits for the device where these are on one."""
        first = _starts(position_ids).flatten().nonzero().squeeze(-1)
        borders = torch.nn.functional.pad(first, (0, 1), value=position_ids.numel()).int()
        return cls(borders, int(borders.diff().max()))

    def to(self, move: Callable[[Tensor], Tensor]) -> Documents:
        """The same elsewhere."""
        return Documents(move(self.borders), self.longest)

    @property
    def as_tensor(self) -> Int[Tensor, "1 1 longest documents_and_1"]:
        """Both in one tensor, which takes no more memory than the borders do.

        Transformers hands a mask of four dimensions on as it is, through each block and its recomputation, where no
        number of ours would get; and nobody has to wait for a device to read a shape.
        """
        return self.borders.view(1, 1, 1, -1).expand(1, 1, self.longest, -1)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Documents:
        """What :attr:`as_tensor` was made of."""
        return cls(tensor[0, 0, 0], tensor.shape[2])


def mask_of_documents(arguments: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """For models whose own masks do not find documents: what goes beside positions that are given without a mask.

    Args:
        arguments: What the model is given.
        dtype: Of its states.

    Returns:
        ``attention_mask``, ``[batch, 1, seq, seq]``, to be added to attention scores, by which tokens see the past of
        their document; nothing, where there is a mask, or where no positions are given.
    """
    if "attention_mask" in arguments or "position_ids" not in arguments:
        return {}
    positions = arguments["position_ids"]
    document = _starts(positions).long().cumsum(1)
    seen = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return {"attention_mask": mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)}
