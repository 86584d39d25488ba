"""What travels between pipeline stages: one float tensor with a graph, and integers.

DeepSpeed gives every float tensor it receives a gradient and wants one back for it, and it runs backward once for each
of them, through the whole of a stage's graph. So there is one: the student's state, with one number behind it that
stands for the losses of the stages before. The teacher's state has no gradient and travels as bytes; labels that are
numbers travel as integers. Integers come behind the float: DeepSpeed's receive buffers keep their order of types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ted_ds.data.loader import Batch

Cargo = tuple[Tensor, ...]
DID_NOT_RUN = torch.zeros(1, dtype=torch.uint8)
"""In the place of a frozen model's state in evaluation: DeepSpeed's receive buffers keep their number, too."""


class _Couple(torch.autograd.Function):
    """Ties a loss to a state that travels on: backward reaches both from one tensor.

    The number stands for the loss: 0, or NaN where it is not finite. Its value has been counted where it was made;
    passed on in 16 bits it would be rounded, and might overflow.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, state: Tensor | None) -> Tensor:
        ctx.shape = None if state is None else state.shape
        ctx.dtype = loss.dtype
        number = torch.where(loss.isfinite(), 0.0, torch.nan).reshape(1)
        return number if state is None else torch.cat([state.reshape(-1), number.to(state.dtype)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        (gradient,) = gradients
        of_loss = gradient[-1].to(ctx.dtype)
        return of_loss, None if ctx.shape is None else gradient[:-1].view(ctx.shape)


@dataclass(frozen=True)
class Waybill:
    """How to read a cargo; the same on all stages."""

    has_trained: bool
    """Whether a trained model's state is in it: not in Stage I, which trains on frozen models alone."""
    labels_are_numbers: bool
    isolated: bool
    """Of :class:`~ted_ds.data.loader.Batch`."""
    has_token_types: bool = False
    """Whether a batch has them."""
    masks: tuple[str, ...] = ()
    """Those of its masks that are not None. A bit each, they travel with which tokens are kept."""

    def load(self, batch: Batch) -> Cargo:
        """What the first stage takes of a microbatch: its tokens, and its labels."""
        bits = batch.kept_tokens.int()
        for place, name in enumerate(self.masks, start=1):
            bits = bits | getattr(batch, name).int() << place
        rows = [batch.input_ids, batch.attention_mask, bits]
        rows += [row for row in (batch.token_type_ids, batch.position_ids) if row is not None]
        tokens = torch.stack([row.int() for row in rows])
        return tokens, batch.labels.float().view(torch.int32) if self.labels_are_numbers else batch.labels.int()

    def batch(self, cargo: Cargo) -> Batch:
        """The microbatch in a cargo."""
        tokens, labels = cargo[-2:]
        input_ids, attention_mask, bits, *others = tokens.long().unbind()
        types = others.pop(0) if self.has_token_types else None
        masks: Any = {name: (bits >> place & 1).bool() for place, name in enumerate(self.masks, start=1)}
        return Batch(
            input_ids,
            attention_mask,
            labels.view(torch.float32) if self.labels_are_numbers else labels.long(),
            (bits & 1).bool(),
            others[0] if others else None,
            self.isolated,
            types,
            **masks,
        )

    def pass_on(self, cargo: Cargo, loss: Tensor, trained: Tensor | None, frozen: Sequence[Tensor]) -> Cargo:
        """What goes to the next stage.

        Args:
            cargo: What came.
            loss: Of this stage and those before, with graph.
            trained: The trained model's state ``[batch, seq, hidden]``, with graph; None in Stage I.
            frozen: Of the frozen models that the next stage has something of, or :data:`DID_NOT_RUN`.
        """
        coupled: Tensor = _Couple.apply(loss, trained)
        # NCCL knows no integers of 16 bits
        as_bytes = [state.detach().contiguous().view(torch.uint8).to(coupled.device) for state in frozen]
        return coupled, *as_bytes, *cargo[-2:]

    def unload(self, cargo: Cargo, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """What came from the stage before: its loss, the trained model's state, and of each frozen one that ran."""
        coupled, *frozen = cargo[:-2]
        shape = cargo[-2].shape[1:]
        trained = coupled[:-1].view(*shape, -1) if self.has_trained else None
        states = [one.view(dtype) if one.dim() > DID_NOT_RUN.dim() else None for one in frozen]
        return coupled[-1].float(), trained, states
