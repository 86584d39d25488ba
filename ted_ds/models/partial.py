"""A transformers model cut down to the blocks of one pipeline stage.

What is not here is replaced by what passes states on, so that the model's own forward still makes the masks, positions
and relative embeddings that its blocks need, and names of parameters stay those of the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted_ds.models.family import Family
from ted_ds.models.parts import blocks_of, has_part, put_part
from ted_ds.models.share import Share


class Arrival(nn.Module):
    """Stands for the embeddings: puts out the state that came from the stage before."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        """``[batch, seq, hidden]``; to be set before each forward pass."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The state."""
        assert self.state is not None, "no state has arrived"
        return self.state


def put_out(arrival: Arrival, tapped: nn.Module) -> Tensor:
    """The state that arrived, of a model without blocks, through the module that the layer is known by."""
    state: Tensor = arrival()
    return state if tapped is arrival else tapped(state)


class Nothing(nn.Module):
    """Stands for embeddings that are added: they are in the state that arrives."""

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """A zero that takes on the type of what it is added to."""
        return torch.zeros((), device=ids.device)


class AbsentBlock(nn.Module):
    """Stands for a block of another stage, or for one that is left out."""

    def __init__(self, block: nn.Module, *, returns_tuple: bool) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)  # by which some models choose a block's mask
        self._returns_tuple = returns_tuple

    def forward(self, state: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor, None]:
        """The state as it is, in the form in which the family's blocks return it."""
        return (state, None) if self._returns_tuple else state


def load_with_blocks_of(kind: type[PreTrainedModel], family: Family, share: Share, *arguments: Any, **more: Any) -> Any:
    """``kind.from_pretrained(*arguments, **more)``, which neither reads nor allocates blocks of other stages.

    All else is loaded, as weights may be tied to it, and left to :func:`keep_share`.
    """

    def init(self: PreTrainedModel, *own: Any, **named: Any) -> None:
        kind.__init__(self, *own, **named)
        _leave_out_blocks(self, family, share)

    # transformers treats classes of other modules than its own as custom code
    result = type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__}).from_pretrained(
        *arguments, **more
    )
    model: Any = result[0] if isinstance(result, tuple) else result
    model.__class__ = kind  # others make more of it, and write its name down
    return result


def keep_share(model: PreTrainedModel, family: Family, share: Share) -> Arrival | None:
    """Drop what other stages hold.

    Returns:
        What takes the arriving state, where the embeddings are elsewhere.
    """
    _leave_out_blocks(model, family, share)
    if not share.has_output:
        body = model.base_model
        for name, child in list(model.named_children()):
            if child is not body:
                setattr(model, name, nn.Identity())
        for path in family.behind_blocks:
            if has_part(model, path):
                put_part(model, path, nn.Identity())
    arrival = None if share.has_embeddings else Arrival()
    if arrival is not None:
        put_part(model, family.arrival_path, arrival)
        for path, kind in family.before_blocks.items():
            if has_part(model, path):
                put_part(model, path, Nothing() if kind == "added" else nn.Identity())
        if family.embeddings_factor_path is not None:
            parent, _, name = family.embeddings_factor_path.rpartition(".")
            setattr(model.get_submodule(parent), name, 1)
    has_first_block = share.start == 0 < share.stop
    if not has_first_block and family.behind_first_block is not None and has_part(model, family.behind_first_block):
        put_part(model, family.behind_first_block, None)
    return arrival


@contextlib.contextmanager
def passing_on(model: PreTrainedModel, family: Family, numbers: Collection[int]) -> Iterator[None]:
    """Let blocks of these numbers, from 0, pass states on for a while; those of a decoder follow those of its encoder.

    All others do what they do in the whole model. What is behind the first block goes with it.
    """
    left_out: list[tuple[nn.ModuleList, int, nn.Module]] = []
    before = 0
    for stack in family.stacks.values():
        blocks = blocks_of(model, stack)
        left_out += [(blocks, index, block) for index, block in enumerate(blocks) if before + index in numbers]
        before += len(blocks)
    path = family.behind_first_block if 0 in numbers else None
    behind_first = model.get_submodule(path) if path is not None and has_part(model, path) else None
    try:
        for blocks, index, block in left_out:
            blocks[index] = AbsentBlock(block, returns_tuple=family.blocks_return_tuples)
        if path is not None and behind_first is not None:
            put_part(model, path, None)
        yield
    finally:
        for blocks, index, block in left_out:
            blocks[index] = block
        if path is not None and behind_first is not None:
            put_part(model, path, behind_first)


def _leave_out_blocks(model: PreTrainedModel, family: Family, share: Share) -> None:
    blocks = blocks_of(model, family)
    for index in range(len(blocks)):
        if not share.start <= index < share.stop:
            blocks[index] = AbsentBlock(blocks[index], returns_tuple=family.blocks_return_tuples)
