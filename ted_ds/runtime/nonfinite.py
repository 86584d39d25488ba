"""Losses and gradients that are not finite: where they come from, and that every ZeRO stage skips their step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SkippedStep:
    """A step that was not taken, on any rank."""

    reason: str
    is_scale_search: bool
    """Whether only fp16's loss scale was too high: it halves, and starts high on purpose."""


@dataclass(frozen=True)
class Sighting:
    """What one rank saw in a step, in words of the watch and the objective."""

    terms: list[str]
    """Loss terms that were not finite."""
    outputs: list[str]
    """Modules that put out something not finite, from input to output."""
    gradients: list[str]
    """Modules whose output's gradient was not finite, from input to output."""


class FiniteWatch:
    """Notices which modules put out, or are passed back, numbers that are not finite.

    Each output is summed where it is, once forward and once backward, and nothing waits for the device: a sum over
    anything not finite is not finite either.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Watch ``modules``, named and ordered from input to output."""
        self._names = list(modules)
        self._outputs = torch.zeros(len(modules), device=device)
        self._spoiling: Tensor | None = None
        self._gradients = torch.zeros(len(modules), device=device)
        self._hooks = [
            module.register_forward_hook(functools.partial(self._see_output, index))
            for index, module in enumerate(modules.values())
        ]

    @torch.no_grad()
    def _see_output(self, index: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        state: Tensor = output[0] if isinstance(output, tuple) else output
        self._outputs[index] += state.sum(dtype=torch.float32)
        if state.requires_grad:
            state.register_hook(functools.partial(self._see_gradient, index))

    @torch.no_grad()
    def _see_gradient(self, index: int, gradient: Tensor) -> Tensor | None:
        self._gradients[index] += gradient.sum(dtype=torch.float32)
        return None if self._spoiling is None else gradient * self._spoiling

    def spoil(self, factor: Tensor) -> None:
        """Multiply what is passed back from now on to the next :meth:`reset`; NaN makes a gradient of zeros NaN too."""
        self._spoiling = factor

    def seen(self, terms: list[str]) -> Sighting:
        """What was not finite since the last :meth:`reset`, beside these loss terms; waits for the device."""
        outputs, gradients = (~values.isfinite() for values in (self._outputs, self._gradients))
        named = [
            [name for name, bad in zip(self._names, flags.tolist(), strict=True) if bad]
            for flags in (outputs, gradients)
        ]
        return Sighting(terms, *named)

    def reset(self) -> None:
        """Forget what was seen."""
        self._spoiling = None
        self._outputs.zero_()
        self._gradients.zero_()

    def remove(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()


def explain(of_ranks: Sequence[Sighting], *, fp16: bool) -> SkippedStep:
    """What went bad and where it began, from what each rank saw."""
    terms = any(sighting.terms for sighting in of_ranks)
    return SkippedStep(_describe(of_ranks), is_scale_search=fp16 and not terms)


def _describe(of_ranks: Sequence[Sighting]) -> str:
    terms = list(dict.fromkeys(term for sighting in of_ranks for term in sighting.terms))
    if terms:
        ranks = ", ".join(str(rank) for rank, sighting in enumerate(of_ranks) if sighting.terms)
        first = next((sighting.outputs[0] for sighting in of_ranks if sighting.outputs), None)
        begun = f"it begins in the output of {first}" if first else "the outputs of all layers are finite"
        return f"{', '.join(terms)} not finite on rank {ranks}; {begun}"
    # in a pipeline, it comes back from the last stages to the first
    last = next((sighting.gradients[-1] for sighting in reversed(of_ranks) if sighting.gradients), None)
    begun = f"it begins in what comes back to the output of {last}" if last else "those between layers are finite"
    return f"the gradient is not finite, though the loss is; {begun}"


def drop_gradients(engine: Any) -> None:
    """After a skipped step: ZeRO-1/2 with an offloaded optimizer would keep its gradient and spoil the next."""
    kept = getattr(engine.optimizer, "averaged_gradients", {})
    for group in kept:
        kept[group] = None


def skip_nonfinite_gradients(engine: Any) -> None:
    """Make an engine of stage 0 skip such steps.

    ZeRO 1-3 do; at stage 0 DeepSpeed steps a plain torch optimizer with whatever gradient is there. It reads
    ``overflow`` from optimizers that have it.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "overflow"):
        return
    plain_step = optimizer.step

    @functools.wraps(plain_step)  # torch's schedules look for the mark they left on it
    def step() -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = torch.stack([gradient.sum(dtype=torch.float32) for gradient in gradients]).isfinite().all()
        optimizer.overflow = not bool(finite)
        if not optimizer.overflow:
            plain_step()

    optimizer.step = step
