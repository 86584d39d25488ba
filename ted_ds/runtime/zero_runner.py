"""The trainable engine of ZeRO 0 to 3: every rank has the whole module, or its shards, and its own microbatches."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from ted_ds.data.loader import Batch
from ted_ds.output.step_parts import BACKWARD, DATA, OPTIMIZER
from ted_ds.runtime.gradient_norms import GradientNorms
from ted_ds.runtime.nonfinite import SkippedStep, skip_nonfinite_gradients
from ted_ds.runtime.replay import Replay
from ted_ds.runtime.step_clock import timed
from ted_ds.runtime.step_runner import EngineSettings, Objective, Seen, StepRunner
from ted_ds.runtime.world import World


class ZeroRunner(StepRunner):
    """A module under ZeRO 0-3, its optimizer and schedule."""

    def __init__(
        self, module: nn.Module, settings: EngineSettings, *, world: World, watched: Mapping[str, nn.Module]
    ) -> None:
        """See :class:`StepRunner`."""
        super().__init__(module, settings, world=world, watched=watched)
        skip_nonfinite_gradients(self.engine)
        self._replay = Replay(self.engine, module, world)
        self._replay_every, self._replayed = settings.replay_every_steps, None
        """Of how many steps one is computed twice, and the last that was."""

    def _engine_module(self) -> nn.Module:
        return self._module

    def step(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> SkippedStep | None:
        """See :meth:`StepRunner.step`."""
        with self.clock.step(lambda: self._step.num_tokens):
            self.accumulate(batches, objective)
            return self.update()

    def accumulate(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> None:
        """Take the next microbatches and accumulate the gradient of their loss.

        Their number may differ from step to step; every rank must have as many as the others.

        Raises:
            DataExhausted: There is none left: no microbatch of any rank holds a token; on every rank.
            TedError: The data failed on some rank; raised on all of them.
        """
        micro, _ = self._next_microbatches(batches, objective)
        on_device = self._step.counts_on(self._world.device)
        if objective.balance is not None and objective.balance.is_due:
            norms = GradientNorms(self.engine, self._module, self._world)
            objective.balance.take(norms.measure(objective.balance, objective.loss, micro, on_device))
        self._watch.reset()
        due = self._replay_every is not None and self.engine.global_steps % self._replay_every == 0
        with self._replay.watched() if due else contextlib.nullcontext():
            factor = self._learn(micro, objective, on_device)
        if due and bool(factor.isfinite()):  # else the step will be skipped
            objective.watch(False)
            self._repeat(micro, objective, on_device, factor)

    def repeat(
        self, batches: Iterator[Sequence[Batch]], objective: Objective, times: int, between: Callable[[int], None]
    ) -> None:
        """Compute the gradients of the next microbatches, and so often again; no step is taken. Once for an engine.

        Args:
            batches: As of :meth:`step`.
            objective: Likewise.
            times: How often after the first time.
            between: Hears how many repetitions are behind; every rank calls it.

        Raises:
            DeviceFaultError: A repetition came to other bits on some rank; on every rank.
            TedError: The data failed on some rank; raised on all of them.
        """
        micro, _ = self._next_microbatches(batches, objective)
        counts = {name: count.to(self._world.device, torch.float32) for name, count in self._step.counts.items()}
        self._watch.reset()
        with self._replay.watched():
            factor = self._learn(micro, objective, counts)
        objective.watch(False)
        for number in range(1, times + 1):
            losses = functools.partial(self._losses, micro, objective, counts, factor)
            self._replay.repeat(losses, number=number, times=times)
            between(number)

    def _learn(self, micro: Sequence[Batch], objective: Objective, counts: Mapping[str, Tensor]) -> Tensor:
        """Accumulate microbatches' gradients; returns the factor of the last one's loss: NaN for a step to skip."""
        factor = torch.ones((), device=self._world.device)
        for index, batch in enumerate(micro):
            # DeepSpeed would count microbatches itself, and take every step after the same number of them
            self.engine.set_gradient_accumulation_boundary(index == len(micro) - 1)
            with timed(DATA):
                here = batch.to(self._world.device)
            loss, totals = objective.loss(self.engine, here, counts)
            self._step.add(totals)
            if index == len(micro) - 1:
                # a loss that is not finite on one rank may have a finite gradient: let the step be skipped all the same
                bad = self._world.sum(torch.stack([~total.isfinite() for total in self._step.totals.values()]).sum())
                factor = torch.where(bad > 0, torch.nan, 1.0)
                self._watch.spoil(factor)  # where a microbatch keeps nothing, the loss alone would not reach a weight
                loss = loss * factor
            with timed(BACKWARD):
                self.engine.backward(loss * self._world.size, scale_wrt_gas=False)
                if index < len(micro) - 1:
                    self.engine.step()
        return factor

    def _repeat(
        self, micro: Sequence[Batch], objective: Objective, counts: Mapping[str, Tensor], factor: Tensor
    ) -> None:
        """Compute the step's gradients once more.

        Raises:
            DeviceFaultError: They are not the same on some rank; on every rank.
        """
        losses = functools.partial(self._losses, micro, objective, counts, factor)
        step = self.engine.global_steps + 1
        self._replay.compare(losses, step=step, checked=self._replayed)
        self._replayed = step

    def _losses(
        self, micro: Sequence[Batch], objective: Objective, counts: Mapping[str, Tensor], factor: Tensor
    ) -> Iterator[Tensor]:
        """Those of :meth:`_learn` once more, as they were given to backward, to the last operation."""
        for index, batch in enumerate(micro):
            loss, _ = objective.loss(self._module, batch.to(self._world.device), counts)
            yield (loss * factor if index == len(micro) - 1 else loss) * self._world.size

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """Each trainable parameter's whole accumulated gradient in fp32, between :meth:`accumulate` and :meth:`update`.

        One at a time, as they need not fit together; None where backward did not reach a parameter. Every rank must
        read them all.
        """
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                yield name, None if gradient is None else gradient.detach().float().clone()

    def update(self) -> SkippedStep | None:
        """Clip, and step with the accumulated gradient, unless it or a loss term is not finite.

        Returns:
            Why the step was skipped, on every rank; None when it was taken.
        """
        skipped_before = self.engine.skipped_steps
        with timed(OPTIMIZER):
            self.engine.step()
        return self._settle(skipped_before)

    def look(self, batch: Batch, read: Callable[[Callable[..., Any], Batch], Mapping[int, Seen]]) -> dict[int, Seen]:
        """See :meth:`StepRunner.look`."""
        was_training = self.engine.training
        self.engine.eval()
        try:
            return dict(read(self.engine, batch))
        finally:
            self.engine.train(was_training)
