"""A step's gradients computed twice: a machine that computes wrongly, without an error, does not do so twice alike.

What worn-out memory and bad cores do to numbers, nobody reports (Dixit et al. 2021, "Silent Data Corruptions at Scale",
arXiv:2102.11245). Each rank compares what it computed by itself, before gradients of ranks are summed up: so the one
that is wrong is known, and nothing of its step has reached a weight. What comes after that is not looked at: sums over
ranks, the accumulation of microbatches in fp32, and the optimizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ted_ds.errors import DeviceFaultError
from ted_ds.launching.own_log import note_fault
from ted_ds.runtime.bit_hash import chained, hash_of_bits
from ted_ds.runtime.determinism import random_state, restore_random_state
from ted_ds.runtime.sharding import forget_passes, loss_scale_of
from ted_ds.runtime.world import World

MOST_NAMED = 3
WHAT_TO_LOOK_AT = "A sound machine repeats itself: look at memory, GPU and CPU there, and leave the host out"


class Replay:
    """Watches a step's backward passes on an engine of ZeRO 0-3, and repeats them on its module."""

    def __init__(self, engine: Any, module: nn.Module, world: World) -> None:
        self._engine, self._module, self._world = engine, module, world
        self._trained = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
        self._random: dict[str, Any] = {}
        self._first = self._nothing()

    def _nothing(self) -> Tensor:
        return torch.zeros(len(self._trained), dtype=torch.int64, device=self._world.device)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While this is open, what backward passes give each parameter on this rank is hashed, in their order."""
        self._random, self._first = random_state(), self._nothing()

        def hook(index: int) -> Callable[[Tensor], None]:
            def take(gradient: Tensor) -> None:
                chained(self._first[index], hash_of_bits(gradient))

            return take

        hooks = [parameter.register_hook(hook(index)) for index, (_, parameter) in enumerate(self._trained)]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

    def compare(self, losses: Callable[[], Iterator[Tensor]], *, step: int, checked: int | None) -> None:
        """Compute the same again, and hold it to what was watched. Every rank must call it.

        Args:
            losses: The microbatches' losses once more, by the module's own forward, as they were given to backward.
            step: The step, counted from 1, for messages.
            checked: The last one that was compared, in this process.

        Raises:
            DeviceFaultError: They differ on some rank; on every rank.
        """
        of_ranks = self.differing(losses)
        if any(of_ranks):
            before = (
                "no step of this start was compared before" if checked is None else f"up to step {checked} they were"
            )
            where = f"{self._wrong_ranks(of_ranks)}; {before}"
            text = (
                f"step {step}: computed a second time, gradients are not the same bits ({where}). {WHAT_TO_LOOK_AT}. "
                "Nothing of this step was taken; start the same command again to go on from the newest checkpoint"
            )
            raise self._fault(of_ranks, text, f"its gradients of step {step} are not the same bits a second time")

    def repeat(self, losses: Callable[[], Iterator[Tensor]], *, number: int, times: int) -> None:
        """The same where nothing is trained: the ``number``-th repetition of so many. Every rank must call it.

        Raises:
            DeviceFaultError: They differ on some rank; on every rank.
        """
        of_ranks = self.differing(losses)
        if any(of_ranks):
            text = (
                f"repetition {number} of {times}: gradients of the same step are not the bits they were the first time "
                f"({self._wrong_ranks(of_ranks)}). {WHAT_TO_LOOK_AT}"
            )
            raise self._fault(of_ranks, text, f"its gradients are not the same bits in repetition {number} of {times}")

    def differing(self, losses: Callable[[], Iterator[Tensor]]) -> list[list[str]]:
        """Compute the same again; of every rank the parameters whose gradients are others than when it was watched.

        Every rank must call it.
        """
        scale, again = loss_scale_of(self._engine), self._nothing()
        after = random_state()
        restore_random_state(self._random)
        parameters = [parameter for _, parameter in self._trained]
        for loss in losses():
            # not backward, with which DeepSpeed would add it up
            found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
            for index, gradient in enumerate(found):
                if gradient is not None:
                    chained(again[index], hash_of_bits(gradient))
        restore_random_state(after)
        forget_passes(self._engine, self._module)
        differ = (again != self._first).cpu().tolist()
        return self._world.gather([name for (name, _), one in zip(self._trained, differ, strict=True) if one])

    def _wrong_ranks(self, of_ranks: Sequence[Sequence[str]]) -> str:
        return "; ".join(
            f"rank {rank} on {self._world.hosts[rank]}: {len(names)} of {len(self._trained)} gradients, as of "
            f"{', '.join(names[:MOST_NAMED])}"
            for rank, names in enumerate(of_ranks)
            if names
        )

    def _fault(self, of_ranks: Sequence[Sequence[str]], text: str, note: str) -> DeviceFaultError:
        """The error of all ranks; a wrong one leaves a note for who watches it."""
        if of_ranks[self._world.rank]:
            note_fault(note[:300])
        error = DeviceFaultError(text)
        error.agreed = True
        return error
