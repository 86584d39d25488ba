"""How large the gradient of each term is by itself, over the whole global batch, under ZeRO 0-3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ted_ds.data.loader import Batch
from ted_ds.runtime.determinism import random_state, restore_random_state
from ted_ds.runtime.sharding import forget_passes, loss_scale_of
from ted_ds.runtime.world import World

Loss = Callable[[Callable[..., Any], Batch, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]


class MeasuredTerms(Protocol):
    """Terms of which the gradients are measured apart."""

    @property
    def terms(self) -> Sequence[str]:
        """Their names."""
        ...

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """On which."""
        ...

    @property
    def is_due(self) -> bool:
        """Whether that is to be done before the step that was begun is taken."""
        ...

    def alone(self, term: str) -> AbstractContextManager[None]:
        """While this is open, the loss is that term's alone."""
        ...

    def take(self, norms: Mapping[str, float]) -> None:
        """Take each one's norm, the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        ...


class GradientNorms:
    """Measures on a module that an engine of ZeRO 0-3 trains; neither weights nor gradients of that change.

    What is differentiated is the module itself and not the engine, which would count what it sees as training, and only
    down to the parameters in question. Each term draws the random numbers (dropout) that the step itself will draw.
    """

    def __init__(self, engine: Any, module: nn.Module, world: World) -> None:
        self._engine, self._module, self._world = engine, module, world

    def measure(
        self, measured: MeasuredTerms, loss: Loss, batches: Sequence[Batch], counts: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """The norm of each term's gradient on ``measured.parameters``. Every rank must call it.

        Args:
            measured: The terms.
            loss: A microbatch's share of the step's loss, by a forward, the microbatch and ``counts``.
            batches: This rank's microbatches of the step; as many as any other rank has.
            counts: Those of the whole global batch, on the device.
        """
        random = random_state()
        squares = torch.zeros(len(measured.terms), dtype=torch.float64, device=self._world.device)
        for square, term in zip(squares, measured.terms, strict=True):
            restore_random_state(random)
            with measured.alone(term):
                for gradient in self._gradients(measured.parameters, loss, batches, counts):
                    square += self._world.sum(gradient).double().square().sum()
        restore_random_state(random)
        forget_passes(self._engine, self._module)
        norms = self._world.from_main(squares.sqrt())
        return dict(zip(measured.terms, norms.tolist(), strict=True))

    def _gradients(
        self,
        parameters: Sequence[nn.Parameter],
        loss: Loss,
        batches: Sequence[Batch],
        counts: Mapping[str, Tensor],
    ) -> Iterator[Tensor]:
        """Of each parameter, in fp32, this rank's part: its microbatches'."""
        scale = loss_scale_of(self._engine)  # small numbers of fp16 are 0 without it
        device = self._world.device
        sums = [torch.zeros(getattr(one, "ds_shape", one.shape), device=device) for one in parameters]
        for batch in batches:
            value, _ = loss(self._module, batch.to(device), counts)
            # (an expert that no token went through has none)
            found = torch.autograd.grad(value * scale, parameters, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += gradient.float() / scale
        yield from sums
