"""The trainable engine of a pipeline: every rank holds one stage of student and teacher, and passes states on.

DeepSpeed's ``PipelineModule`` and ``PipelineEngine`` schedule the microbatches (one forward, one backward) and move
what :mod:`ted_ds.runtime.cargo` says. Each stage computes the layer-wise losses of the pairs it holds.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import schedule
from deepspeed.utils import groups
from torch import Tensor, nn

from ted_ds.config.deepspeed_keys import zero_stage
from ted_ds.data.loader import Batch
from ted_ds.models.taps import TappedModel
from ted_ds.output.step_parts import BACKWARD, DATA, OPTIMIZER
from ted_ds.runtime.cargo import DID_NOT_RUN, Cargo, Waybill
from ted_ds.runtime.checkpoints.engine_state import STAND_IN, layout_of
from ted_ds.runtime.nonfinite import SkippedStep
from ted_ds.runtime.step_clock import timed
from ted_ds.runtime.step_runner import EngineSettings, Objective, Seen, StepRunner, group_of
from ted_ds.runtime.world import World

STAND_IN_SHAPES = {"matrix": (1, 1), "vector": (1,)}


@dataclass(frozen=True)
class Travellers:
    """The models whose states pass this stage."""

    trained: TappedModel | None
    """None in Stage I, which trains nothing but filters and heads."""
    frozen: Mapping[str, TappedModel]
    """By side, in the order of the cargo; none in Stage 0, and where this stage has nothing of the teacher."""
    arriving: Collection[str]
    """The frozen ones whose states come from the stage before."""
    going_on: Collection[str]
    """The frozen ones whose states the next stage waits for."""
    trains_before: bool
    """Whether the trained model's state hangs on anything that trains, where it arrives."""


class StageModule(nn.Module):
    """One stage: takes the states of the stage before, works on a microbatch, passes its states on."""

    def __init__(
        self, module: nn.Module, travellers: Travellers, waybill: Waybill, world: World, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.module = module
        # ZeRO sums up the norm of each parameter group over the stages: all must have as many, also where no filter is
        kinds = {group_of(parameter) for parameter in module.parameters() if parameter.requires_grad}
        missing = set().union(*world.gather(kinds)) - kinds
        self.stand_ins = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(STAND_IN_SHAPES[kind], dtype=dtype)) for kind in sorted(missing)}
        )
        """Their gradient is 0, so they stay where they are."""
        self._dtype = dtype
        self._models, self._waybill = (travellers,), waybill  # in a tuple: frozen weights are no part of the engine
        self._is_first, self._is_last = world.stage == 0, world.stage == world.num_stages - 1
        self.work: Callable[[Batch], Tensor | None] | None = None
        """What to do with a microbatch; gives this stage's share of the loss, where there is one."""
        self.close: Callable[[Tensor], Tensor] | None = None
        """What the last stage makes of the loss of all stages."""

    def forward(self, cargo: Cargo) -> Cargo | Tensor:
        """See the class; the last stage gives the loss."""
        (models,) = self._models
        assert self.work is not None, "nothing to do"
        loss_before: Tensor | None = None
        if not self._is_first:
            loss_before, trained, frozen = self._waybill.unload(cargo, self._dtype)
            if trained is not None and not models.trains_before:
                trained = trained.detach()  # a backward pass to there would be for nobody
            awaited = [model for side, model in models.frozen.items() if side in models.arriving]
            for model, state in ((models.trained, trained), *zip(awaited, frozen, strict=True)):
                if model is not None and state is not None:  # evaluation leaves the teacher out
                    model.arrive(state)
        own = self.work(self._waybill.batch(cargo))
        loss = (torch.zeros(()) if own is None else own).to(cargo[-1].device)
        if loss_before is not None:
            loss = loss + loss_before
        for stand_in in self.stand_ins.values():
            loss = loss + 0.0 * stand_in.sum()
        if self._is_last:
            return loss if self.close is None else self.close(loss)
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss = loss.detach().requires_grad_()  # DeepSpeed wants a gradient of what is passed on
        left = {side: model.leave() for side, model in models.frozen.items()}  # also where nobody waits for it
        going_on = [DID_NOT_RUN if state is None else state for side, state in left.items() if side in models.going_on]
        trained_state = models.trained.leave() if models.trained is not None else None
        return self._waybill.pass_on(cargo, loss, trained_state, going_on)


class _TiedWeights(nn.Module):
    """Weights that other stages have too."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, weight)


def _pass_by(_tied: nn.Module | None, cargo: Cargo) -> Cargo:
    return cargo


class PipelineRunner(StepRunner):
    """One stage of a pipeline under ZeRO 0 or 1, its optimizer and schedule."""

    def __init__(
        self,
        module: nn.Module,
        settings: EngineSettings,
        *,
        world: World,
        watched: Mapping[str, nn.Module],
        travellers: Travellers,
        waybill: Waybill,
    ) -> None:
        """Start the engine.

        Args:
            module: What this stage trains, by the names of the whole module.
            settings: How the engine is started.
            world: The ranks.
            watched: See :class:`StepRunner`.
            travellers: The models whose states pass.
            waybill: How they travel.
        """
        self._stage = StageModule(module, travellers, waybill, world, settings.dtype)
        self._waybill = waybill
        own_config = dict(settings.config)
        is_plain = zero_stage(own_config) == 0
        if is_plain:  # DeepSpeed would clip by the norm of the first stage's gradients
            own_config["gradient_clipping"] = 0.0
        super().__init__(module, replace(settings, config=own_config), world=world, watched=watched)
        if is_plain:
            step_by_whole_gradient(self.engine, world, max_norm=float(settings.config["gradient_clipping"]))
        _time_instructions(self.engine)
        parts = world.gather((layout_of(self.engine, self._names), self._trained_names))[:: world.num_replicas]
        orders, names = [layout["order"] for layout, _ in parts], [groups for _, groups in parts]
        self._layout = {**parts[0][0], "order": orders, "stages": names}

    def _engine_module(self) -> nn.Module:
        for kind, stand_in in self._stage.stand_ins.items():
            self._names[id(stand_in)] = f"{STAND_IN}_{self._world.stage}_{kind}"
        own = {self._names[id(p)]: p for p in self._stage.parameters() if p.requires_grad}
        of_stages = self._world.gather(list(own))[:: self._world.num_replicas]
        holders: dict[str, tuple[int, ...]] = {}
        for stage, names in enumerate(of_stages):
            holders |= {name: (*holders.get(name, ()), stage) for name in names}
        sharing = sorted({stages for stages in holders.values() if len(stages) > 1})
        layers: list[Any] = []
        for stage in range(self._world.num_stages):
            is_here = stage == self._world.stage
            for group in sharing:
                if stage not in group:
                    layers.append(functools.partial(_pass_by, None))
                    continue
                tied = sorted(name for name, stages in holders.items() if stages == group)
                layers.append(
                    TiedLayerSpec(
                        "stages_" + "_".join(map(str, group)),
                        _TiedWeights,
                        {f"weight_{index}": own[name] for index, name in enumerate(tied)} if is_here else {},
                        forward_fn=_pass_by,
                        tied_weight_attr=[f"weight_{index}" for index in range(len(tied))],
                    )
                )
            layers.append(self._stage if is_here else nn.Identity())
        # it prints its layers, and broadcasts weights as if that had a gradient
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            # as many layers for each stage, so that "uniform" cuts where the stages are
            whole = PipelineModule(
                layers, num_stages=self._world.num_stages, partition_method="uniform", dynamic_shape=True
            )
        # a weight in two modules goes by the name of the one that is registered first: by the stage's
        tied_modules = whole.tied_modules
        del whole.tied_modules
        whole.tied_modules = tied_modules
        return whole

    # --- steps --------------------------------------------------------------------------------------------------------

    def step(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> SkippedStep | None:
        """See :meth:`StepRunner.step`."""
        with self.clock.step(lambda: self._step.num_tokens):
            return self._step_of(batches, objective)

    def _step_of(self, batches: Iterator[Sequence[Batch]], objective: Objective) -> SkippedStep | None:
        micro, num_micro = self._next_microbatches(batches, objective)
        counts = self._step.counts_on(self._world.device)
        self._watch.reset()
        failed = torch.zeros((), device=self._world.device)

        def work(batch: Batch) -> Tensor:
            loss, totals = objective.loss(self._module, batch, counts)
            self._step.add(totals)
            return loss * self._world.num_replicas  # DeepSpeed averages over them

        def close(loss: Tensor) -> Tensor:
            # a loss that is not finite may have a finite gradient: let the step be skipped all the same
            failed.add_(0.0 * loss.detach())
            self._watch.spoil(1.0 + failed)
            return loss * (1.0 + failed) * num_micro  # which DeepSpeed divides by

        self._stage.work, self._stage.close = work, close
        skipped_before = self.engine.skipped_steps
        per_pass = self.engine.train_micro_batch_size_per_gpu() * self._world.num_replicas
        self.engine.set_train_batch_size(num_micro * per_pass)
        self.engine.train_batch(self._stream(micro))
        self._stage.work = self._stage.close = None
        return self._settle(skipped_before)

    def look(self, batch: Batch, read: Callable[[Callable[..., Any], Batch], Mapping[int, Seen]]) -> dict[int, Seen]:
        """See :meth:`StepRunner.look`."""
        found: dict[int, Seen] = {}

        def work(arrived: Batch) -> None:
            found.update(read(self._module, arrived))

        self._stage.work = work
        self.engine.eval_batch(
            self._stream([batch]), compute_loss=False, reduce_output=None, bcast_loss=False, num_micro_batches=1
        )
        self._stage.work = None
        self.engine.train()
        return found

    def _stream(self, micro: Sequence[Batch]) -> Iterator[tuple[Cargo | None, Tensor]]:
        """What the first stage takes; the last one takes everything from those before it, but asks."""
        nothing = torch.zeros(1)
        if self._world.reads_data:
            return ((self._waybill.load(batch), nothing) for batch in micro)
        return itertools.repeat((None, nothing))

    def release(self) -> None:
        """Free the engine; engines that are made afterwards have all ranks as their replicas again."""
        super().release()
        del self._stage
        groups.mpu = None  # DeepSpeed keeps the last engine's grid for all that follow

    @property
    def layout(self) -> dict[str, Any]:
        """Beside what :class:`StepRunner` says, what each stage trains."""
        return self._layout


def _time_instructions(engine: Any) -> None:
    """Have what an engine is told by its schedule counted as the parts of a step; what is sent counts as such."""

    def counted(part: str, plain: Callable[..., None]) -> Callable[..., None]:
        def run(own: Any, **named: Any) -> None:
            with timed(part):
                plain(own, **named)

        return run

    parts = {
        schedule.LoadMicroBatch: DATA,
        schedule.BackwardPass: BACKWARD,
        schedule.OptimizerStep: OPTIMIZER,
    }
    plain = engine._INSTRUCTION_MAP
    engine._INSTRUCTION_MAP = {**plain, **{kind: counted(part, plain[kind]) for kind, part in parts.items()}}


def step_by_whole_gradient(engine: Any, world: World, *, max_norm: float) -> None:
    """Make an engine of stage 0 clip by the norm over all stages, and skip where that is not finite.

    ZeRO-1 does both. It reads ``overflow`` and the norm from optimizers that have them.
    """
    optimizer = engine.optimizer
    plain_step = optimizer.step
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    @functools.wraps(plain_step)  # torch's schedules look for the mark they left on it
    def step() -> None:
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        # a tied weight has the same gradient on all its stages, and counts on the first
        counted = [p.grad for p in trained if p.grad is not None and not p.ds_pipe_replicated]
        squares = torch.stack([gradient.float().square().sum() for gradient in counted]).sum()
        norm = float((world.sum(squares) / world.num_replicas).sqrt())  # replicas have the same
        optimizer.overflow, optimizer._global_grad_norm = not math.isfinite(norm), norm
        if optimizer.overflow:
            return
        if max_norm > 0:
            factor = min(max_norm / (norm + 1e-6), 1.0)  # as torch.nn.utils.clip_grad_norm_
            for gradient in gradients:
                gradient.mul_(factor)
        plain_step()

    optimizer.step = step
