"""What every engine does beside one step's computation: start, count, report, hand its state to checkpoints.

DeepSpeed averages gradients over ranks and, by default, over microbatches. The promise here is another one: the
gradient of the loss summed over the whole global batch and divided once by its global count. So each loss is
multiplied by the number of ranks, and DeepSpeed's scaling by accumulation is undone.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from ted_ds.data.loader import Batch
from ted_ds.errors import DataError, TedError
from ted_ds.output.step_parts import DATA
from ted_ds.runtime.checkpoints.engine_state import SavedEngine, layout_of, load_states, take_states
from ted_ds.runtime.gradient_norms import MeasuredTerms
from ted_ds.runtime.initialize import initialize
from ted_ds.runtime.nonfinite import FiniteWatch, SkippedStep, drop_gradients, explain
from ted_ds.runtime.sharding import all_finite, release_engine
from ted_ds.runtime.step_clock import StepClock, timed
from ted_ds.runtime.step_sums import StepSums
from ted_ds.runtime.world import World

Seen = TypeVar("Seen")


class Objective(Protocol):
    """What a stage trains for."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term."""
        ...

    @property
    def changing_weights(self) -> Mapping[str, float]:
        """For reports: those that are not the same at all steps."""
        ...

    @property
    def balance(self) -> MeasuredTerms | None:
        """Terms that are weighed by the gradients they have; None where weights are what the recipe says."""
        ...

    def begin_step(self, step: int | None) -> None:
        """Weigh terms as at a step, counted from 0; None: by what each weight comes to at most."""
        ...

    def watch(self, wanted: bool) -> None:
        """Whether to look, in the steps that come, at more than they need."""
        ...

    def seen(self, device: torch.device) -> Tensor:
        """Sums of what was looked at since the last call, in fp64, as many on every rank, where they add up."""
        ...

    def told(self, sums: Sequence[float]) -> Mapping[str, float]:
        """Metrics, from :meth:`seen` of all ranks."""
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


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is started."""

    config: Mapping[str, Any]
    """The completed DeepSpeed config."""
    schedule: str
    """Of the learning rate after its warm-up; ``deepspeed`` leaves it to the config."""
    warmup_steps: int
    max_steps: int
    weight_decay: float
    """Of matrices."""
    dtype: torch.dtype
    """Of the weights."""
    schedule_parameters: Mapping[str, float] = field(default_factory=dict)
    """Of the schedule, beside steps, by transformers' names."""
    replay_every_steps: int | None = None
    """Of how many steps one is computed twice; None for none."""
    source: str = "(made by a program)"
    """The file that the config comes from, for messages."""


class StepRunner(ABC):
    """A module on an engine of DeepSpeed, its optimizer and schedule: turns microbatches into optimizer steps."""

    def __init__(
        self,
        module: nn.Module,
        settings: EngineSettings,
        *,
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
            parameter.data = parameter.data.to(settings.dtype)
        make_schedule = functools.partial(
            get_scheduler,
            # its plain "constant" takes no notice of the warm-up
            "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=settings.max_steps,
            scheduler_specific_kwargs=dict(settings.schedule_parameters),
        )
        aliases: Mapping[str, str] = getattr(module, "aliases", {})
        self._names = {id(parameter): aliases.get(name, name) for name, parameter in module.named_parameters()}
        whole = self._engine_module()
        groups = _parameter_groups(whole, settings.weight_decay)
        self._trained_names = [[self._names[id(parameter)] for parameter in group["params"]] for group in groups]
        # its annotations are narrower than what it documents and takes: parameter groups, and any callable
        arguments: dict[str, Any] = {
            "model_parameters": groups,
            "lr_scheduler": make_schedule if settings.schedule != "deepspeed" else None,
        }
        self.engine: Any = initialize(settings.source, model=whole, config=dict(settings.config), **arguments)
        self._watch = FiniteWatch(watched, world.device)
        self._step = StepSums()
        self._pending = StepSums()
        self.clock = StepClock(world.device)
        """Of its steps."""

    @abstractmethod
    def _engine_module(self) -> nn.Module:
        """What DeepSpeed gets: the module, or what runs it."""

    @abstractmethod
    def step(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> SkippedStep | None:
        """Take the next microbatches, and one optimizer step on them. Every rank must call it.

        Their number may differ from step to step; every rank that reads data must have as many as the others.

        Returns:
            Why the step was skipped, on every rank; None when it was taken.

        Raises:
            DataExhausted: There is none left: no microbatch of any rank holds a token; on every rank.
            TedError: The data failed on some rank; raised on all of them.
        """

    @abstractmethod
    def look(self, batch: Batch, read: Callable[[Callable[..., Any], Batch], Mapping[int, Seen]]) -> dict[int, Seen]:
        """What ``read(forward, batch)`` finds by the module's forward, in eval mode and without gradient.

        Every rank must call it, in a pipeline with the same batch on every stage; a rank gets what was found there.
        """

    def _next_microbatches(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> tuple[list[Batch], int]:
        """This rank's microbatches, and how many every rank that reads has; counts what is in them of all ranks."""
        failure: TedError | None = None
        micro: list[Batch] = []
        names = list(objective.weights)
        counts = torch.zeros(len(names) + 4, dtype=torch.float64)
        with timed(DATA):
            try:
                micro = list(next(batches))
            except TedError as error:
                failure = error
            for batch in micro:
                one = objective.counts(batch)
                counts[:-4] += torch.stack([one[name].double() for name in names])
                counts[-3] += batch.kept_tokens.sum()
                counts[-2] += batch.kept_tokens.numel()
        counts[-4] = len(micro)
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
        self._step = StepSums(counts=of_terms, num_tokens=num_tokens, num_positions=num_positions)
        return micro, round(float(counts[-4])) // self._world.num_replicas

    def _settle(self, num_skipped_before: int) -> SkippedStep | None:
        """Count the step that the engine has done with, or say why it was skipped."""
        if self.engine.skipped_steps == num_skipped_before:
            self._pending.merge(self._step)
            return None
        drop_gradients(self.engine)
        bad = [name for name, total in self._step.totals.items() if not total.isfinite()]
        return explain(self._world.gather(self._watch.seen(bad)), fp16=self.engine.fp16_enabled())

    def report(self, objective: Objective) -> dict[str, float]:
        """Mean of each term since the last report, over all ranks and the steps taken; one synchronisation.

        Without terms, and without the share of padding, where every step was skipped. Where weights change, the total
        is by those of the last step.
        """
        report: dict[str, float] = {}
        seen = objective.seen(self._world.device)
        if self._pending.counts:
            names = list(objective.weights)
            nothing = torch.zeros((), dtype=torch.float64, device=self._world.device)  # other stages have the term
            totals = torch.stack([self._pending.totals.get(name, nothing) for name in names])
            totals, seen = self._world.sum(torch.cat([totals, seen])).cpu().split([len(totals), len(seen)])
            counts = torch.stack([self._pending.counts[name] for name in names]).clamp(min=1)
            values = dict(zip(names, (totals / counts).tolist(), strict=True))
            report = {"loss/total": sum(objective.weights[name] * values[name] for name in names), **values}
            report |= {**_layer_means(values), **objective.changing_weights, **objective.told(seen.tolist())}
        report["train/learning_rate"] = self.engine.get_lr()[0]
        report["train/skipped_steps"] = self.engine.skipped_steps
        norm = self.engine.get_global_grad_norm()
        norm = math.nan if norm is None else float(norm)  # read once, when the device has nothing left to do
        if math.isfinite(norm):
            report["train/gradient_norm"] = norm
        report["train/tokens"] = self._pending.num_tokens
        if self._pending.num_positions:
            report["train/padding"] = 1 - self._pending.num_tokens / self._pending.num_positions
        self._pending = StepSums()
        return report

    def seen(self, objective: Objective) -> Mapping[str, float]:
        """What the objective was told to look at since it was last asked. Every rank must call it."""
        return objective.told(self._world.sum(objective.seen(self._world.device)).tolist())

    def weights_are_finite(self) -> bool:
        """Whether no weight on any rank is NaN or infinite. Every rank must call it."""
        return all(self._world.gather(all_finite(self._module)))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> dict[str, Any]:
        """Ranks, ZeRO stage and optimizer: what decides which files there are, and how to read them elsewhere."""
        layout = layout_of(self.engine, self._names)
        return {**layout, "names": self._trained_names} if layout["zero_stage"] == 0 else layout

    def states(self, folder: Path) -> dict[Path, Any]:
        """Copies of weights, optimizer and schedule, by their file in ``folder``. Every rank must call it."""
        return take_states(self.engine, folder)

    def load(self, folder: Path) -> None:
        """Take up :meth:`states` that were written on this layout. Every rank must call it."""
        load_states(self.engine, folder)

    def states_from(self, folder: Path, layout: Mapping[str, Any], place: Path) -> dict[Path, Any]:
        """The states in ``folder``, written on another layout, as this one would have written them into ``place``.

        Every rank must call it.

        Raises:
            CheckpointError: They are not whole; on every rank.
        """
        saved = self._world.agree(lambda: SavedEngine(folder, layout, self._trained_names))
        states = self.states(place)
        with self._world.together():
            saved.fill(states, self.engine, self._names)
        return states

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
        totals = [one["totals"] for one in mine]
        names = list(dict.fromkeys(name for one in of_ranks for name in one["totals"]))
        device = self._world.device
        self._pending = StepSums(
            totals={
                name: torch.tensor(
                    sum(of_rank.get(name, 0.0) for of_rank in totals), dtype=torch.float64, device=device
                )
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


def group_of(parameter: nn.Parameter) -> str:
    """The optimizer's group of a parameter: weight decay is for matrices."""
    return "matrix" if len(getattr(parameter, "ds_shape", parameter.shape)) >= 2 else "vector"


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if group_of(parameter) == "matrix"]
    vectors = [parameter for parameter in trainable if group_of(parameter) == "vector"]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _layer_means(values: Mapping[str, float]) -> dict[str, float]:
    families: dict[str, list[float]] = {}
    for name, value in values.items():
        family, found, _ = name.partition("/layer_")
        if found:
            families.setdefault(family, []).append(value)
    return {name: sum(of_layers) / len(of_layers) for name, of_layers in families.items()}
