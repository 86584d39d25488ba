"""The trainable engine: one DeepSpeed engine that turns microbatches into an optimizer step.

DeepSpeed averages gradients over ranks and, by default, over microbatches. The promise here is another one: the
gradient of the loss summed over the whole global batch and divided once by its global count. So each loss is
multiplied by the number of ranks, and DeepSpeed's scaling by accumulation is switched off.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import get_scheduler

from ted_ds.data.loader import Batch
from ted_ds.errors import ConfigError, DataError, TedError
from ted_ds.runtime.checkpoints.engine_state import layout_of, load_states, reshard, take_states
from ted_ds.runtime.nonfinite import FiniteWatch, SkippedStep, drop_gradients, explain, skip_nonfinite_gradients
from ted_ds.runtime.sharding import all_finite, release_engine
from ted_ds.runtime.world import World


class Objective(Protocol):
    """What a stage trains for."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term."""
        ...

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """What a microbatch adds to each term's count; known before the forward pass."""
        ...

    def loss(
        self, forward: Callable[..., Any], batch: Batch, counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A microbatch's share of the step's loss, with graph, and each term's fp32 sum over it, without.

        ``forward`` is the trainable module's; ``counts`` are those of the whole global batch.
        """
        ...


class DataExhausted(DataError):
    """No rank has a token left to train on; raised on all of them, before any forward pass."""

    agreed = True


class TrainableEngine:
    """A module under ZeRO 0-3, its optimizer and schedule."""

    def __init__(
        self,
        module: nn.Module,
        *,
        config: Mapping[str, Any],
        schedule: str,
        warmup_steps: int,
        max_steps: int,
        weight_decay: float,
        dtype: torch.dtype,
        world: World,
        watched: Mapping[str, nn.Module],
    ) -> None:
        """Start the engine. ``requires_grad`` must be final: ZeRO does not see later changes.

        ``watched`` are the modules, from input to output, among which to look for the origin of a number that is not
        finite.
        """
        self._world, self._module = world, module
        module.train()
        # ZeRO-3 cannot hold parameters of two dtypes, and new filters are fp32. Buffers keep theirs: rotary
        # frequencies in bf16 would put tokens at other positions than the exported model does.
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        make_schedule = functools.partial(
            get_scheduler,
            # its plain "constant" takes no notice of the warm-up
            "constant_with_warmup" if schedule == "constant" else schedule,
            num_warmup_steps=warmup_steps,
            num_training_steps=max_steps,
        )
        groups = _parameter_groups(module, weight_decay)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._trained_names = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
        # its annotations are narrower than what it documents and takes: parameter groups, and any callable
        arguments: dict[str, Any] = {
            "model_parameters": groups,
            "lr_scheduler": make_schedule if schedule != "deepspeed" else None,
        }
        try:
            self.engine, *_ = deepspeed.initialize(model=module, config=dict(config), **arguments)
        except ValidationError as error:  # of the sections that DeepSpeed checks itself
            raise ConfigError(f"DeepSpeed config: {error}") from error
        world.bound_waits()
        skip_nonfinite_gradients(self.engine)
        self._watch = FiniteWatch(watched, world.device)
        self._step = _StepSums()
        self._pending = _StepSums()

    @property
    def num_steps(self) -> int:
        """Steps taken so far, skipped ones included."""
        return self.engine.global_steps

    def step(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> SkippedStep | None:
        """Take the next microbatches, and one optimizer step on them.

        Returns:
            Why the step was skipped, on every rank; None when it was taken.

        Raises:
            DataExhausted: There is none left; on every rank.
            TedError: The data failed on some rank; raised on all of them.
        """
        self.accumulate(batches, objective)
        return self.update()

    def accumulate(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> None:
        """Take the next microbatches and accumulate the gradient of their loss.

        Their number may differ from step to step; every rank must have as many as the others.

        Raises:
            DataExhausted: There is none left: no microbatch of any rank holds a token; on every rank.
            TedError: The data failed on some rank; raised on all of them.
        """
        micro, self._step = self._next_microbatches(batches, objective)
        on_device = {name: count.to(self._world.device, torch.float32) for name, count in self._step.counts.items()}
        self._watch.reset()
        for index, batch in enumerate(micro):
            # DeepSpeed would count microbatches itself, and take every step after the same number of them
            self.engine.set_gradient_accumulation_boundary(index == len(micro) - 1)
            loss, totals = objective.loss(self.engine, batch.to(self._world.device), on_device)
            self._step.add(totals)
            if index == len(micro) - 1:
                # a loss that is not finite on one rank may have a finite gradient: let the step be skipped all the same
                bad = self._world.sum(torch.stack([~total.isfinite() for total in self._step.totals.values()]).sum())
                factor = torch.where(bad > 0, torch.nan, 1.0)
                self._watch.spoil(factor)  # where a microbatch keeps nothing, the loss alone would not reach a weight
                loss = loss * factor
            self.engine.backward(loss * self._world.size, scale_wrt_gas=False)
            if index < len(micro) - 1:
                self.engine.step()

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
        self.engine.step()
        if self.engine.skipped_steps == skipped_before:
            self._pending.merge(self._step)
            return None
        drop_gradients(self.engine)
        bad = [name for name, total in self._step.totals.items() if not total.isfinite()]
        return explain(self._world.gather(self._watch.seen(bad)), fp16=self.engine.fp16_enabled())

    def _next_microbatches(
        self, batches: Iterator[Sequence[Batch]], objective: Objective
    ) -> tuple[list[Batch], _StepSums]:
        """This rank's microbatches, and what is counted of the step over all ranks."""
        failure: TedError | None = None
        micro: list[Batch] = []
        try:
            micro = list(next(batches))
        except TedError as error:
            failure = error
        names = list(objective.weights)
        counts = torch.zeros(len(names) + 3, dtype=torch.float64)
        for batch in micro:
            one = objective.counts(batch)
            counts[:-3] += torch.stack([one[name].double() for name in names])
            counts[-3] += batch.kept_tokens.sum()
            counts[-2] += batch.kept_tokens.numel()
        counts[-1] = failure is not None
        self._world.sum_on_host(counts)  # batches are still on the host: no wait for the device
        if counts[-1]:
            with self._world.together():
                if failure is not None:
                    raise failure
        num_tokens, num_positions = (int(count) for count in counts[-3:-1])
        if not num_tokens:  # a text has at least one: all of this is filler
            raise DataExhausted(
                "data.train: no rank has anything left to train on; give it more data, or lower max_steps"
            )
        of_terms = {name: counts[i] for i, name in enumerate(names)}
        return micro, _StepSums(counts=of_terms, num_tokens=num_tokens, num_positions=num_positions)

    def report(self, objective: Objective) -> dict[str, float]:
        """Mean of each term since the last report, over all ranks and the steps taken; one synchronisation.

        Without terms, and without the share of padding, where every step was skipped.
        """
        report: dict[str, float] = {}
        if self._pending.totals:
            names = list(objective.weights)
            totals = self._world.sum(torch.stack([self._pending.totals[name] for name in names])).cpu()
            counts = torch.stack([self._pending.counts[name] for name in names]).clamp(min=1)
            values = dict(zip(names, (totals / counts).tolist(), strict=True))
            report = {"loss/total": sum(objective.weights[name] * values[name] for name in names), **values}
            report |= _layer_means(values)
        report["train/learning_rate"] = self.engine.get_lr()[0]
        report["train/skipped_steps"] = self.engine.skipped_steps
        norm = self.engine.get_global_grad_norm()
        if norm is not None and math.isfinite(norm):
            report["train/gradient_norm"] = float(norm)
        report["train/tokens"] = self._pending.num_tokens
        if self._pending.num_positions:
            report["train/padding"] = 1 - self._pending.num_tokens / self._pending.num_positions
        self._pending = _StepSums()
        return report

    def weights_are_finite(self) -> bool:
        """Whether no weight on any rank is NaN or infinite. Every rank must call it."""
        return all(self._world.gather(all_finite(self._module)))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> dict[str, Any]:
        """Ranks, ZeRO stage and optimizer: what decides which files there are."""
        return layout_of(self.engine)

    def states(self, folder: Path) -> dict[Path, Any]:
        """Copies of weights, optimizer and schedule, by their file in ``folder``. Every rank must call it."""
        return take_states(self.engine, folder)

    def load(self, folder: Path) -> None:
        """Take up :meth:`states` that were written on this layout. Every rank must call it."""
        load_states(self.engine, folder)

    def states_from(self, folder: Path, layout: Mapping[str, Any], place: Path) -> dict[Path, Any]:
        """The states in ``folder``, written on another layout, as this one would have written them into ``place``."""
        return reshard(self.engine, folder, layout, place, self._trained_names)

    def unreported(self) -> dict[str, Any]:
        """This rank's sums since the last report, as JSON; waits for the device."""
        pending = self._pending
        return {
            "totals": {name: float(total) for name, total in pending.totals.items()},
            "counts": {name: float(count) for name, count in pending.counts.items()},
            "num_tokens": pending.num_tokens,
            "num_positions": pending.num_positions,
        }

    def go_on_reporting(self, of_ranks: Sequence[Mapping[str, Any]]) -> None:
        """Take up the sums that all ranks had, however many there were."""
        mine = of_ranks[self._world.rank : self._world.rank + 1]
        if len(of_ranks) != self._world.size:
            mine = of_ranks if self._world.is_main else []
        names = of_ranks[0]["totals"]
        device = self._world.device
        self._pending = _StepSums(
            totals={
                name: torch.tensor(sum(one["totals"][name] for one in mine), dtype=torch.float64, device=device)
                for name in names
            },
            # what everybody knows of all ranks
            counts={name: torch.tensor(of_ranks[0]["counts"][name], dtype=torch.float64) for name in names},
            num_tokens=of_ranks[0]["num_tokens"],
            num_positions=of_ranks[0]["num_positions"],
        )

    def release(self) -> None:
        """Free the engine, its optimizer state and hooks."""
        self._watch.remove()
        release_engine(self.engine)
        del self.engine, self._module


@dataclass
class _StepSums:
    """Loss terms of one or more steps: this rank's sums, everybody's counts."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: int = 0
    num_positions: int = 0
    """With padding and empty rows."""

    def add(self, totals: Mapping[str, Tensor]) -> None:
        """Add a microbatch's sums, without their graph."""
        for name, total in totals.items():
            self.totals[name] = self.totals.get(name, 0) + total.detach().double()

    def merge(self, step: _StepSums) -> None:
        """Add another step's."""
        self.add(step.totals)
        for name, count in step.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.num_tokens += step.num_tokens
        self.num_positions += step.num_positions


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    dimensions = [len(getattr(parameter, "ds_shape", parameter.shape)) for parameter in trainable]
    matrices = [p for p, d in zip(trainable, dimensions, strict=True) if d >= 2]
    vectors = [p for p, d in zip(trainable, dimensions, strict=True) if d < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _layer_means(values: Mapping[str, float]) -> dict[str, float]:
    families: dict[str, list[float]] = {}
    for name, value in values.items():
        family, found, _ = name.partition("/layer_")
        if found:
            families.setdefault(family, []).append(value)
    return {name: sum(of_layers) / len(of_layers) for name, of_layers in families.items()}
