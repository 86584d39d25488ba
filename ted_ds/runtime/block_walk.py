"""A frozen model that goes up its blocks on some texts, step by step: between steps their states wait on the host.

So that what lies behind a block can be looked at, and the block changed, without a pass through all that is before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ted_ds.data.loader import Batch
from ted_ds.models.parts import blocks_of, layers_of_blocks
from ted_ds.runtime.frozen import FrozenModel

Heard = Mapping[str, tuple[Tensor, Tensor]]
"""What modules took and put out, by name."""
See = Callable[[int, Tensor, Heard], None]
"""Takes the number of a microbatch, the state of each of its tokens at a layer, and what was listened to."""


def _look_away(_number: int, _state: Tensor, _heard: Heard) -> None:
    """Where only the way up is wanted."""


class BlockWalk:
    """Every rank must call everything, with as many microbatches: ranks may share a sharded model."""

    def __init__(
        self,
        model: FrozenModel,
        batches: Sequence[Batch],
        *,
        device: torch.device,
        before_batch: Callable[[], None],
        goes_back: bool = False,
    ) -> None:
        """Begin before the embeddings.

        Args:
            model: Of one stack of blocks.
            batches: The microbatches, on the host.
            device: The model's.
            before_batch: Called before each forward pass, to stop by an exception.
            goes_back: Whether to keep, for :meth:`back`, the states from where a step began.
        """
        self.model, self.layer = model, 0
        self.states: list[Tensor] = []
        """Of each microbatch at the layer, on the host; none before the embeddings."""
        self._batches, self._device, self._before_batch = batches, device, before_batch
        self._goes_back = goes_back
        self._former: tuple[int, list[Tensor]] = (0, [])

    def restart(self) -> None:
        """Go back before the embeddings."""
        self.layer, self.states = 0, []

    def back(self) -> None:
        """Go back to where the last step began."""
        assert self._goes_back
        self.layer, self.states = self._former

    @torch.no_grad()
    def go(self, layer: int, see: See = _look_away, *, listen: Mapping[str, nn.Module] | None = None) -> None:
        """Go up to a layer, the output of block ``layer``, counted from 1.

        Args:
            layer: Above this one.
            see: Gets each microbatch's state there; whatever module puts it out, its last axis is the hidden size, and
                flattened before that its tokens are those of the microbatch.
            listen: Modules of the blocks on the way.
        """
        assert layer > self.layer, f"layer {layer} is not above layer {self.layer}"
        tapped, start, states = self.model.tapped, self.layer, self.states
        count = len(blocks_of(tapped.model, tapped.family))
        if self._goes_back:
            self._former = (start, [*states])
        with self.model.without_blocks([number for number in range(count) if not start <= number < layer]):
            blocks, layers = blocks_of(tapped.model, tapped.family), layers_of_blocks(tapped.model, tapped.family)
            for number, batch in enumerate(self._batches):
                self._before_batch()
                given = states[number].to(self._device) if start else None
                with _listening(blocks[start], given, {**(listen or {}), "": layers[layer - 1]}) as heard:
                    self.model(batch.to(self._device).inputs)
                state = heard.pop("")[1]
                states[number : number + 1] = [state.to("cpu")]
                see(number, state, heard)
        self.layer = layer


@contextlib.contextmanager
def _listening(
    first: nn.Module, given: Tensor | None, modules: Mapping[str, nn.Module]
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Put a state in before a block, and note what modules take and put out."""
    heard: dict[str, tuple[Tensor, Tensor]] = {}

    def put_in(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (given, *arguments[1:]), named
        return arguments, {**named, "hidden_states": given}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            taken: Any = inputs[0] if inputs else None  # of a block that gets its state by name
            heard[name] = (taken, output[0] if isinstance(output, tuple | list) else output)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    if given is not None:
        handles.append(first.register_forward_pre_hook(put_in, with_kwargs=True))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
