"""The trainable engine: one DeepSpeed engine that turns microbatches into an optimizer step.

DeepSpeed averages gradients over ranks and, by default, over microbatches. The promise here is another one: the
gradient of the loss summed over the whole global batch and divided once by its global count. So each loss is
multiplied by the number of ranks, and DeepSpeed's scaling by accumulation is switched off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import deepspeed
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import get_scheduler

from ted_ds.data.loader import Batch
from ted_ds.errors import ConfigError, NumericsError, TedError
from ted_ds.numerics.objective import combine
from ted_ds.runtime.sharding import release_engine
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

    def totals(self, forward: Callable[..., Any], batch: Batch) -> Mapping[str, Tensor]:
        """Each term's fp32 sum over a microbatch, with graph; ``forward`` is the trainable module's."""
        ...


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
    ) -> None:
        """Start the engine. ``requires_grad`` must be final: ZeRO does not see later changes."""
        self._world = world
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
        # its annotations are narrower than what it documents and takes: parameter groups, and any callable
        arguments: dict[str, Any] = {
            "model_parameters": _parameter_groups(module, weight_decay),
            "lr_scheduler": make_schedule if schedule != "deepspeed" else None,
        }
        try:
            self.engine, *_ = deepspeed.initialize(model=module, config=dict(config), **arguments)
        except ValidationError as error:  # of the sections that DeepSpeed checks itself
            raise ConfigError(f"DeepSpeed config: {error}") from error
        self._pending_totals: dict[str, Tensor] = {}
        self._pending_counts: dict[str, Tensor] = {}
        self._pending_tokens = 0

    def step(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> None:
        """Take the next microbatches, and one optimizer step on them.

        Raises:
            TedError: The data failed on some rank; raised on all of them.
        """
        failure: TedError | None = None
        micro: list[Batch] = []
        try:
            micro = list(next(batches))
        except TedError as error:
            failure = error
        names = list(objective.weights)
        counts = torch.zeros(len(names) + 2, dtype=torch.float64)
        for batch in micro:
            one = objective.counts(batch)
            counts[:-2] += torch.stack([one[name].double() for name in names])
            counts[-2] += batch.attention_mask.sum()
        counts[-1] = failure is not None
        self._world.sum_on_host(counts)  # batches are still on the host: no wait for the device
        if counts[-1]:
            with self._world.together():
                if failure is not None:
                    raise failure
        global_counts = {name: counts[i].to(self._world.device, torch.float32) for i, name in enumerate(names)}
        for batch in micro:
            totals = objective.totals(self.engine, batch.to(self._world.device))
            loss = combine(totals, global_counts, objective.weights)
            self.engine.backward(loss * self._world.size, scale_wrt_gas=False)
            self.engine.step()
            for name, total in totals.items():
                self._pending_totals[name] = self._pending_totals.get(name, 0) + total.detach().double()
        for i, name in enumerate(names):
            self._pending_counts[name] = self._pending_counts.get(name, 0) + counts[i]
        self._pending_tokens += int(counts[-2])

    def report(self, objective: Objective) -> dict[str, float]:
        """Mean of each term since the last report, over all ranks; one synchronisation.

        Raises:
            NumericsError: A term is NaN or infinite.
        """
        names = list(objective.weights)
        totals = self._world.sum(torch.stack([self._pending_totals[name] for name in names])).cpu()
        counts = torch.stack([self._pending_counts[name] for name in names]).clamp(min=1)
        values = dict(zip(names, (totals / counts).tolist(), strict=True))
        bad = [name for name, value in values.items() if value - value != 0]
        if bad:
            error = NumericsError(
                f"{', '.join(bad)}: NaN or infinite after {self.engine.global_steps} steps; lower the learning rate, "
                "or use precision bf16 or fp32"
            )
            error.agreed = True  # the sums are the same on every rank
            raise error
        report = {"loss/total": sum(objective.weights[name] * values[name] for name in names), **values}
        report |= _layer_means(values)
        report["train/learning_rate"] = self.engine.get_lr()[0]
        report["train/skipped_steps"] = self.engine.skipped_steps
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            report["train/gradient_norm"] = float(norm)
        report["train/tokens"] = self._pending_tokens
        self._pending_totals, self._pending_counts = {}, {}
        self._pending_tokens = 0
        return report

    def release(self) -> None:
        """Free the engine, its optimizer state and hooks."""
        release_engine(self.engine)
        del self.engine


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
